"""Numbers without end, kept as few: count, mean, variance, extremes and a histogram, for each head.

Batches are joined as Chan, Golub and LeVeque 1983 do ("Algorithms for computing the sample variance", equation 2.1):
Welford's method for whole batches. It subtracts nothing large from anything large, so any order of joining gives the
same numbers to float64 precision. Counts, extremes and histograms are the same exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FARTHEST = 20
"""Distances are told apart up to about 2 to this power."""


@dataclass(frozen=True)
class Kind:
    """One statistic of which a summary is kept."""

    edges: tuple[float, ...]
    """Of the histogram: bin i holds the values from edges[i] up to, not including, edges[i + 1]; the last one, both."""
    of_text: bool = False
    """Whether there is one value for each text and head, and not one for each query."""


def _even(low: float, high: float, bins: int) -> tuple[float, ...]:
    return tuple(low + (high - low) * number / bins for number in range(bins + 1))


_SHARES = _even(0.0, 1.0, 50)
_NATS = (*_even(0.0, 16.0, 64), math.inf)

KINDS: Mapping[str, Kind] = {
    "entropy": Kind(_NATS),
    "max_weight": Kind(_SHARES),
    "lse": Kind((-math.inf, *_even(-64.0, 64.0, 64), math.inf)),
    "sink": Kind(_SHARES),
    "first": Kind(_SHARES),
    "distance": Kind((0.0, *(2.0 ** (half / 2) for half in range(-4, 2 * FARTHEST + 1)), math.inf), of_text=True),
    "received_max": Kind(_SHARES, of_text=True),
    "received_entropy": Kind(_NATS, of_text=True),
}
"""The statistics that a profile may keep; :func:`multihead.profile` says what each is."""

OFFSET_EDGES = (*(1 - 2**power for power in range(FARTHEST, 0, -1)), 0, *(2**power for power in range(FARTHEST + 1)))
"""Edges of bins of distance, query position minus key: ..., -3, -1, 0, 1, 2, 4, ...; the outermost hold the rest."""


@dataclass(frozen=True, eq=False)
class Summary:
    """All values of one statistic of one layer, head by head. Immutable; tensors are on the CPU.

    Where nothing was counted, ``mean`` and ``m2`` are 0, ``minimum`` is inf and ``maximum`` -inf.
    """

    count: Int[Tensor, " head"]
    """How many values there were."""
    mean: Float[Tensor, " head"]
    m2: Float[Tensor, " head"]
    """Σ (x - mean)²."""
    minimum: Float[Tensor, " head"]
    maximum: Float[Tensor, " head"]
    histogram: Int[Tensor, "head bin"]
    nonfinite: Int[Tensor, " head"]
    """Values that were NaN or infinite; they are counted here and nowhere else."""
    edges: Float[Tensor, " edge"]

    @classmethod
    def empty(cls, heads: int, kind: Kind) -> "Summary":
        """Of no values."""
        zeros = torch.zeros(heads, dtype=torch.float64)
        counts = torch.zeros(heads, dtype=torch.int64)
        histogram = torch.zeros(heads, len(kind.edges) - 1, dtype=torch.int64)
        edges = torch.tensor(kind.edges, dtype=torch.float64)
        return cls(counts, zeros, zeros, zeros + torch.inf, zeros - torch.inf, histogram, counts, edges)

    @classmethod
    def of(
        cls, values: Float[Tensor, "batch head place"], counted: Bool[Tensor, "batch head place"], kind: Kind
    ) -> "Summary":
        """Of values of each head, in float64; those that are not ``counted`` might as well not be there."""
        heads = values.shape[1]
        if not values.numel():
            return cls.empty(heads, kind)
        # a device without float64 has nothing to say here
        device = torch.device("cpu") if values.device.type == "mps" else values.device
        x = values.to(device).transpose(0, 1).flatten(1).to(torch.float64)
        counted = counted.to(device).transpose(0, 1).flatten(1)
        finite = x.isfinite()
        good = counted & finite
        x = x.masked_fill(~good, 0.0)
        count = good.sum(1)
        mean = x.sum(1) / count.clamp_min(1)
        m2 = (x - mean[:, None]).square().masked_fill(~good, 0.0).sum(1)
        edges = torch.tensor(kind.edges, dtype=torch.float64, device=device)
        bins = len(kind.edges) - 1
        places = (_first_above(edges, x) - 1).clamp(0, bins - 1)
        places += bins * torch.arange(heads, device=device)[:, None]
        histogram = torch.bincount(places[good], minlength=heads * bins).view(heads, bins)
        return cls(
            count.cpu(),
            mean.cpu(),
            m2.cpu(),
            x.masked_fill(~good, torch.inf).amin(1).cpu(),
            x.masked_fill(~good, -torch.inf).amax(1).cpu(),
            histogram.cpu(),
            (counted & ~finite).sum(1).cpu(),
            edges.cpu(),
        )

    def merged(self, other: "Summary") -> "Summary":
        """Of the values of both."""
        count = self.count + other.count
        share = other.count / count.clamp_min(1).to(torch.float64)
        apart = other.mean - self.mean
        return Summary(
            count,
            # where one of them is empty, the other's mean as it is
            torch.where(self.count == 0, other.mean, self.mean + apart * share),
            self.m2 + other.m2 + apart.square() * (self.count * share),
            torch.minimum(self.minimum, other.minimum),
            torch.maximum(self.maximum, other.maximum),
            self.histogram + other.histogram,
            self.nonfinite + other.nonfinite,
            self.edges,
        )

    @property
    def variance(self) -> Float[Tensor, " head"]:
        """The mean of (x - mean)², NaN where nothing was counted."""
        return self.m2 / self.count

    @property
    def heads(self) -> int:
        """How many heads."""
        return len(self.count)

    def __repr__(self) -> str:
        means = ", ".join(f"{mean:.4g}" if count else "-" for mean, count in zip(self.mean, self.count, strict=True))
        return f"Summary of {int(self.count.max()) if self.heads else 0} values a head: means {means}"

    def tensors(self) -> dict[str, Tensor]:
        """What a file has to hold, by name."""
        names = ("count", "mean", "m2", "minimum", "maximum", "histogram", "nonfinite")
        return {name: getattr(self, name) for name in names}


def _first_above(edges: Tensor, x: Tensor) -> Tensor:
    """For each number the place of the first edge above it."""
    if x.device.type != "cpu":
        return torch.bucketize(x, edges, right=True)
    # torch wakes its threads for a few hundred numbers, which takes longer than the search
    return torch.from_numpy(np.searchsorted(edges.numpy(), x.numpy(), side="right"))


def by_distance(mass: Float[Tensor, "batch head distance"], first: int) -> Float[Tensor, "head bin"]:
    """Attention mass by single distances, from ``first`` on, as mass in the bins of ``OFFSET_EDGES``, in float64."""
    total = mass.sum(0, dtype=torch.float64).cpu()
    distances = torch.arange(first, first + mass.shape[2])
    inner = torch.tensor(OFFSET_EDGES[1:-1])
    places = _first_above(inner, distances)
    return torch.zeros(len(total), len(OFFSET_EDGES) - 1, dtype=torch.float64).index_add_(1, places, total)
