"""From one attention of a host to one layer of a recording: choose, measure, compare."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from multihead.core import AttentionCall, Measurements, PartOfMask, Statistics
from multihead.kernels import attend, measure
from multihead.lens.host import HostAttention, HostOutput
from multihead.lens.masks_found import MaskFinder
from multihead.recording import Layer

FLOOR = 1e-4
"""The least relative difference that is let pass, in any precision."""


@dataclass(frozen=True)
class LayerCheck:
    """How far Σ P v, recomputed from what was seen of one layer, is from the host's own output."""

    run: int
    layer: int
    name: str
    difference: float | None
    """Largest absolute difference; None where there was nothing to compare."""
    allowed: float | None
    reason: str | None = None
    """Why nothing could be compared."""

    @property
    def passed(self) -> bool:
        """Whether the two agree; NaN and a missing comparison do not."""
        return self.difference is not None and self.allowed is not None and self.difference <= self.allowed

    def __str__(self) -> str:
        where = f"layer {self.layer} ({self.name or 'the model itself'})"
        if self.difference is None:
            return f"{where}: not compared, {self.reason}"
        verdict = "agrees" if self.passed else "DIFFERS"
        return f"{where}: {verdict}, largest difference {self.difference:.2e}, allowed {self.allowed:.2e}"


@dataclass(frozen=True)
class Sight:
    """One attention as it was seen."""

    layer: Layer
    check: LayerCheck
    cross: bool | None
    extra_keys: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What is to be seen of one attention."""

    index: int
    name: str
    run: int
    heads: tuple[int, ...]
    queries: tuple[int, ...] | None
    statistics: Statistics
    qk: bool
    verify: bool


def sight_of(attention: HostAttention, wanted: Wanted, finder: MaskFinder) -> Sight:
    """Measure what is wanted of an attention, and compare Σ P v with the host's output.

    Raises:
        ValueError: the statistics ask for rows or columns that are not there.
    """
    call = replace(attention.call, dropout=0.0)
    chosen, kv_places, kv_heads = of_heads(call, wanted.heads)
    queries = None if wanted.queries is None else torch.tensor(wanted.queries, dtype=torch.int64, device=call.q.device)
    compared = wanted.verify and not isinstance(attention.output, str)
    full = replace(wanted.statistics, lse=True, max_score=True) if compared else wanted.statistics
    output, found = measure(chosen, full, queries=queries, output=compared)
    check = _check_of(attention, wanted)
    if compared and output is not None and isinstance(attention.output, HostOutput):
        difference, allowed = _difference(call, attention.output, output, found, wanted, queries)
        check = replace(check, difference=difference, allowed=allowed, reason=None)
    layer = Layer(
        index=wanted.index,
        name=wanted.name,
        host=attention.host,
        sizes=call.sizes,
        heads=wanted.heads,
        queries=wanted.queries,
        kv_heads=kv_places if wanted.qk else (),
        scale=call.factor,
        softcap=call.softcap,
        mask=call.mask,
        bias=_bias_of(call, wanted, queries, finder),
        sinks=None if chosen.sinks is None else chosen.sinks.clone(),
        statistics=_only(found, wanted.statistics),
        q=_own(chosen.q, call.q, queries, 2) if wanted.qk else None,
        k=_own(call.k, call.k, None if len(kv_heads) == call.k.shape[1] else kv_heads, 1) if wanted.qk else None,
    )
    return Sight(layer, check, attention.cross, attention.extra_keys)


def _check_of(attention: HostAttention, wanted: Wanted) -> LayerCheck:
    reason = "verify was False: observe with verify=True"
    if wanted.verify and isinstance(attention.output, str):
        reason = attention.output
    return LayerCheck(wanted.run, wanted.index, wanted.name, None, None, reason)


def of_heads(call: AttentionCall, heads: tuple[int, ...]) -> tuple[AttentionCall, tuple[int, ...], list[int]]:
    """The call of some heads; for each head the place of its key head among those kept; and the key heads kept."""
    needed = [head // call.group for head in heads]
    kept = sorted(set(needed))
    places = tuple(kept.index(kv_head) for kv_head in needed)
    if heads == tuple(range(call.sizes.heads)):
        return call, places, kept
    share = len(heads) // len(kept) if kept else 1
    grouped = places == tuple(place // share for place in range(len(heads))) and len(heads) == share * len(kept)
    kv = kept if grouped else needed
    index = torch.tensor(heads, dtype=torch.int64, device=call.q.device)
    bias = call.dense_bias
    if bias is not None and bias.shape[1] != 1:
        bias = bias[:, index]
    chosen = replace(
        call,
        q=call.q[:, index],
        k=call.k[:, kv],
        v=call.v[:, kv],
        mask=None if call.mask is None else PartOfMask(call.mask, call.sizes, heads=index),
        bias=bias,
        sinks=None if call.sinks is None else call.sinks[index],
    )
    return chosen, places, kept


def _bias_of(call: AttentionCall, wanted: Wanted, queries: Tensor | None, finder: MaskFinder) -> Tensor | None:
    """The bias of the chosen heads and queries, in memory of its own; shared by layers that share all of it."""
    bias = call.dense_bias
    if bias is None:
        return None
    some_heads = bias.shape[1] != 1 and wanted.heads != tuple(range(call.sizes.heads))
    some_queries = bias.shape[2] != 1 and queries is not None
    if not some_heads and not some_queries:
        return finder.copy(bias)
    if some_heads:
        bias = bias[:, list(wanted.heads)]
    return _rows(bias, queries).clone() if some_queries else bias


def _own(tensor: Tensor, hosts: Tensor, places: Tensor | list[int] | None, axis: int) -> Tensor:
    """The places of an axis in memory that the model cannot write into, copied once."""
    if places is not None:
        return tensor[:, places] if axis == 1 else tensor[:, :, places]
    return tensor.clone() if tensor is hosts else tensor


def _rows(tensor: Tensor, queries: Tensor | None) -> Tensor:
    return tensor if queries is None else tensor[:, :, queries]


def _only(found: Measurements, statistics: Statistics) -> Measurements:
    """Without what was measured for the comparison alone."""
    return replace(
        found,
        lse=found.lse if statistics.lse else None,
        max_score=found.max_score if statistics.max_score else None,
    )


def _difference(
    call: AttentionCall, host: HostOutput, output: Tensor, found: Measurements, wanted: Wanted, queries: Tensor | None
) -> tuple[float, float]:
    """The largest difference between Σ P v and the host's output, and the largest that rounding explains."""
    assert found.lse is not None  # noqa: S101  measured by the caller
    assert found.max_score is not None  # noqa: S101
    nothing = found.lse == -torch.inf
    if host.finish is None:
        ours = output
        every = wanted.heads == tuple(range(call.sizes.heads))
        theirs = _rows(host.tensor if every else host.tensor[:, list(wanted.heads)], queries)
        unsure = nothing[..., None]
    else:
        ours = host.finish(_with_other_heads(call, output, wanted, queries).to(call.q.dtype), queries)
        theirs = host.tensor if queries is None else host.tensor[:, queries]
        unsure = nothing.any(1)
        if host.rows is not None:
            unsure = unsure | ~(host.rows if queries is None else host.rows[:, queries])
        unsure = unsure[..., None]
    peak = found.max_score.masked_fill(~found.max_score.isfinite(), 0.0).abs()
    dtypes = (max(host.tensor.dtype, call.q.dtype, key=_eps), host.scores_dtype)
    allowed = bar(*dtypes, float(peak.max()) if peak.numel() else 0.0) * _magnitude(host.tensor)
    return largest_difference(ours, theirs, unsure), allowed


def _with_other_heads(call: AttentionCall, output: Tensor, wanted: Wanted, queries: Tensor | None) -> Tensor:
    """Σ P v of all heads: what was measured, and a fused kernel's output for the heads that were not."""
    if wanted.heads == tuple(range(call.sizes.heads)):
        return output
    every = _rows(attend(call), queries).to(output.dtype)
    every[:, list(wanted.heads)] = output
    return every


def largest_difference(
    ours: Float[Tensor, "..."], theirs: Float[Tensor, "..."], unsure: Bool[Tensor, "..."] | None = None
) -> float:
    """The largest |ours - theirs|; NaN in both is no difference, NaN or inf in one is an infinite one.

    ``unsure`` marks rows where the host's output means nothing: queries that see no key.
    """
    ours, theirs = ours.to(torch.promote_types(theirs.dtype, torch.float32)), theirs.detach()
    if not ours.numel():
        return 0.0
    if unsure is None or not unsure.any():
        # nearly always all are numbers: then this one look says all
        largest = _largest(ours - theirs)
        if math.isfinite(largest):
            return largest
    difference = (ours - theirs).abs()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = difference.masked_fill(same, 0.0)
    if unsure is not None:
        difference = difference.masked_fill(unsure, 0.0)
    return float(difference.masked_fill(difference.isnan(), torch.inf).max())


def bar(output: torch.dtype, scores: torch.dtype, peak: float) -> float:
    """The relative difference that rounding explains, in a host that rounds output and scores to these dtypes.

    Four units in the last place of the output, and as many of the scores: a score s is rounded by eps · |s|, and its
    weight changes by that factor; ``peak`` is the largest |s|. Never below ``FLOOR``.
    """
    return max(FLOOR, 4 * (_eps(output) + _eps(scores) * peak))


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def _magnitude(tensor: Tensor) -> float:
    tensor = tensor.detach()
    largest = _largest(tensor) if tensor.numel() else 0.0
    return largest if math.isfinite(largest) else _largest(tensor.masked_fill(~tensor.isfinite(), 0.0))


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, NaN if there is one."""
    low, high = (float(end) for end in tensor.aminmax())
    return max(-low, high)
