"""Online softmax: attention over part of the keys, and the merge of such parts.

Source: Milakov & Gimelshein 2018; Dao et al. 2022, section 3.1.

A state holds, for each query, what is needed to go on: the largest score, the sum of exponentials relative to it, and
the sum of score · exponential for the entropy. Merging is associative and commutative, so keys may come in any order
and from any place.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class SoftmaxState:
    """The softmax of some of the keys, not yet normalised."""

    peak: Float[Tensor, "..."]
    """max s, -inf if nothing was seen."""
    total: Float[Tensor, "..."]
    """Σ exp(s - peak)."""
    moment: Float[Tensor, "..."]
    """Σ (s - peak) exp(s - peak)."""

    @classmethod
    def of(cls, scores: Float[Tensor, "... key"]) -> "SoftmaxState":
        """The state of these scores; -inf where nothing may be seen."""
        if not scores.shape[-1]:
            nothing = scores.new_zeros(scores.shape[:-1])
            return cls(torch.full_like(nothing, -torch.inf), nothing, nothing)
        peak = scores.amax(-1)
        shifted = scores - _finite(peak)[..., None]
        exponentials = shifted.exp()
        return cls(peak, exponentials.sum(-1), _weighted(shifted, exponentials).sum(-1))

    def merge(self, other: "SoftmaxState") -> "SoftmaxState":
        """The state of both sets of keys together."""
        peak = torch.maximum(self.peak, other.peak)
        mine, theirs = self._moved_to(peak), other._moved_to(peak)
        return SoftmaxState(peak, mine.total + theirs.total, mine.moment + theirs.moment)

    def _moved_to(self, peak: Tensor) -> "SoftmaxState":
        shift = self.peak - _finite(peak)
        factor = shift.exp()
        return SoftmaxState(peak, self.total * factor, self.moment * factor + self.total * _weighted(shift, factor))

    @property
    def lse(self) -> Float[Tensor, "..."]:
        """The log-sum-exp, log Σ exp(s); -inf if nothing was seen."""
        return self.peak + self.total.log()

    @property
    def entropy(self) -> Float[Tensor, "..."]:
        """-Σ P log P in nats, 0 if nothing was seen."""
        total = self.total.masked_fill(self.total == 0, 1.0)
        return (total.log() - self.moment / total).clamp_min(0.0)


def merge_outputs(
    outputs: list[Float[Tensor, "... query value_dim"]], lses: list[Float[Tensor, "... query"]]
) -> tuple[Float[Tensor, "... query value_dim"], Float[Tensor, "... query"]]:
    """Attention over all keys from attention over parts of them: outputs weighed by exp(lse - common lse)."""
    every = torch.stack(lses)
    lse = torch.logsumexp(every, 0)
    shares = (every - _finite(lse)).exp()
    return (torch.stack(outputs) * shares[..., None]).sum(0), lse


def _finite(peak: Tensor) -> Tensor:
    return peak.masked_fill(peak == -torch.inf, 0.0)


def _weighted(shifted: Tensor, exponentials: Tensor) -> Tensor:
    return (shifted * exponentials).masked_fill(exponentials == 0, 0.0)
