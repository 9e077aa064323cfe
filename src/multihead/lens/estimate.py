"""``estimate``: what seeing a model will cost, before it is seen."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from multihead.conventions import checked_count, in_words, kind_of
from multihead.core import AttentionCall, Statistics
from multihead.core.statistics import check_statistics
from multihead.kernels import measure
from multihead.lens.costs import Seeing, budget_of, in_bytes, what_to_leave_out
from multihead.lens.sizes import AttentionSizes, sizes_of
from multihead.masks import Causal, Mask, Sizes

CALIBRATION = 1 << 22
"""Scores of the small run that is timed."""

RUNS = 5
"""How often it is timed; one more warms up."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What seeing a model will cost."""

    layers: int
    length: int
    batch: int
    flops: int
    """Floating-point operations of measuring."""
    seconds: float
    """Time of measuring, beside that of the model itself."""
    kept: Mapping[str, int]
    """Bytes that the recording will hold, by what holds them: ``qk``, ``bias`` and each statistic."""
    working_bytes: int
    """Bytes that measuring a layer takes for a while."""
    max_bytes: int | None
    """The budget; None where nobody says what is free."""
    device: str

    @property
    def kept_bytes(self) -> int:
        """Bytes that the recording will hold."""
        return sum(self.kept.values())

    @property
    def peak_bytes(self) -> int:
        """Bytes that the observation will take at most, beside the model."""
        return self.kept_bytes + self.working_bytes

    @property
    def fits(self) -> bool:
        """Whether that is within the budget."""
        return self.max_bytes is None or self.peak_bytes <= self.max_bytes

    def __str__(self) -> str:
        parts = in_words(f"{name} {in_bytes(size)}" for name, size in sorted(self.kept.items(), key=lambda kv: -kv[1]))
        limit = "an unknown budget" if self.max_bytes is None else in_bytes(self.max_bytes)
        verdict = "fits in" if self.fits else "does not fit in"
        advice = "" if self.fits else f": {what_to_leave_out(self.kept)}, or choose fewer layers, heads or queries"
        return (
            f"{self.layers} attentions over {self.length} tokens, batch {self.batch}, on {self.device}\n"
            f"measuring   {self.flops:.2e} FLOPs, about {_duration(self.seconds)} beside the model's own time\n"
            f"recording   {in_bytes(self.kept_bytes)}: {parts}\n"
            f"peak        {in_bytes(self.peak_bytes)} beside the model, which {verdict} {limit}{advice}"
        )


def estimate(
    model_or_sizes: nn.Module | AttentionSizes | Iterable[AttentionSizes],
    *,
    length: int,
    batch: int = 1,
    source_length: int | None = None,
    inputs: Any = None,
    statistics: Statistics = Statistics(),  # noqa: B008
    qk: bool = True,
    max_bytes: int | None = None,
) -> Estimate:
    r"""What :func:`multihead.observe` of a long text will cost: operations, seconds, bytes.

    With P the pairs of a query and a key that it sees (Lq · Lk, or Lq · (Lq + 1) / 2 where causal), summed over layers:

    * operations: :math:`2 B H P (D + D_v)`: 2 · D for each score, 2 · Dv for the Σ P v with which ``verify`` compares;
      the model's own attention takes as many.
    * seconds: a run of the kernel that measures, with these heads, statistics and dtype, on this device, of about
      2²² scores, is timed and scaled by B · P. That assumes that time grows as the pairs do and the machine is as busy
      as now; a sliding window is not counted on. The model's own time comes on top.
    * bytes: the size of every tensor that the recording will hold, exactly, and an upper bound of what measuring takes
      for a while. A dense bias is counted once for each pair of texts, a dense mask not at all.

    Args:
        model_or_sizes: a model, which is run once on a short text to see its attentions; or their sizes.
        length: tokens of the text (of the target, where there are two).
        batch: texts at once.
        source_length: tokens of the source; None: as many.
        inputs: the short text, as a batch of :func:`multihead.profile`; None: made up, where the model reads token ids.
        statistics: as :func:`multihead.observe`.
        qk: likewise.
        max_bytes: the budget; None: half of what is free on the device.

    Returns:
        The estimate; printed, it says all of this.

    Raises:
        ObservationError: the model cannot be observed, or nothing was seen of it.
        ValueError, TypeError: arguments of other kinds; the message says what to write.

    >>> import multihead as mh
    >>> sizes = [mh.AttentionSizes(heads=32, kv_heads=8, head_dim=128, causal=True)] * 32
    >>> cost = mh.estimate(sizes, length=1000, statistics=mh.Statistics(max_score=False), max_bytes=2**30)
    >>> cost.kept["qk"] == 32 * (32 + 8) * 1000 * 128 * 4
    True
    >>> cost.flops == 32 * 2 * 32 * (1000 * 1001 // 2) * (128 + 128)
    True
    >>> cost.fits
    True
    """
    for name, value in (
        ("length", length),
        ("batch", batch),
        ("source_length", source_length),
        ("max_bytes", max_bytes),
    ):
        if value is not None:
            checked_count(name, value)
    check_statistics(statistics)
    device = torch.get_default_device()
    if isinstance(model_or_sizes, nn.Module):
        device = next((tensor.device for tensor in model_or_sizes.parameters()), device)
        layers = sizes_of(model_or_sizes, inputs, device)
    else:
        layers = _checked(model_or_sizes)
    lengths = {"target": length, "source": length if source_length is None else source_length}
    seeings = [_seeing(layer, lengths, batch, statistics, qk=qk) for layer in layers]
    kept: dict[str, int] = {}
    for seeing in seeings:
        for name, size in seeing.kept().items():
            kept[name] = kept.get(name, 0) + size
    biases = {
        (layer.query_text, layer.key_text): layer.heads
        * seeing.sizes.queries
        * seeing.sizes.keys
        * layer.dtype.itemsize
        for layer, seeing in zip(layers, seeings, strict=True)
        if layer.bias
    }
    if biases:
        kept["bias"] = sum(biases.values())
    times: dict[tuple[Any, ...], float] = {}
    seconds, flops = 0.0, 0
    for layer, seeing in zip(layers, seeings, strict=True):
        key = (replace(layer, name="", query_text="target", key_text="target"), _small(seeing))
        if key not in times:
            times[key] = _seconds_a_pair(layer, seeing, device)
        pairs = _pairs(seeing.sizes, causal=layer.causal)
        seconds += times[key] * pairs * batch
        flops += 2 * batch * seeing.heads * pairs * (seeing.head_dim + seeing.value_dim)
    return Estimate(
        layers=len(layers),
        length=length,
        batch=batch,
        flops=flops,
        seconds=seconds,
        kept=kept,
        working_bytes=max((seeing.working() for seeing in seeings), default=0),
        max_bytes=budget_of(max_bytes, device),
        device=str(device),
    )


def _checked(sizes: object) -> list[AttentionSizes]:
    layers = [sizes] if isinstance(sizes, AttentionSizes) else list(sizes) if isinstance(sizes, Iterable) else [sizes]
    strange = next((layer for layer in layers if not isinstance(layer, AttentionSizes)), None)
    if strange is not None or not layers:
        raise TypeError(
            f"estimate takes a torch.nn.Module or AttentionSizes, one for each layer, got {kind_of(strange)}: say for "
            "example [mh.AttentionSizes(heads=32, kv_heads=8, head_dim=128, causal=True)] * 32."
        )
    return [layer for layer in layers if isinstance(layer, AttentionSizes)]


def _seeing(
    layer: AttentionSizes, lengths: Mapping[str, int], batch: int, statistics: Statistics, *, qk: bool
) -> Seeing:
    sizes = Sizes(batch, layer.heads, lengths[layer.query_text], lengths[layer.key_text])
    statistics.check(sizes)
    return Seeing(
        sizes=sizes,
        heads=layer.heads,
        kv_heads=layer.kv_heads or layer.heads,
        queries=sizes.queries,
        head_dim=layer.head_dim,
        value_dim=layer.value_dim or layer.head_dim,
        dtype=layer.dtype,
        statistics=statistics,
        qk=qk,
    )


def _pairs(sizes: Sizes, *, causal: bool) -> int:
    """Pairs of a query and a key that it sees."""
    if not causal:
        return sizes.queries * sizes.keys
    return sizes.queries * sizes.keys - sizes.queries * (sizes.queries - 1) // 2


def _small(seeing: Seeing) -> tuple[int, int]:
    """Queries and keys of the run that is timed: in the proportion of the long one."""
    sizes = seeing.sizes
    share = min(1.0, math.sqrt(CALIBRATION / (sizes.heads * sizes.queries * sizes.keys)))
    return max(1, round(sizes.queries * share)), max(1, round(sizes.keys * share))


def _seconds_a_pair(layer: AttentionSizes, seeing: Seeing, device: torch.device) -> float:
    """Seconds that measuring takes for each pair that is seen: the median of some small runs."""
    queries, keys = _small(seeing)
    mask: Mask | None = Causal() if layer.causal else None
    q = torch.randn(1, seeing.heads, queries, seeing.head_dim, device=device).to(layer.dtype)
    k = torch.randn(1, seeing.kv_heads, keys, seeing.head_dim, device=device).to(layer.dtype)
    v = torch.randn(1, seeing.kv_heads, keys, seeing.value_dim, device=device).to(layer.dtype)
    bias = torch.zeros(1, seeing.heads, queries, keys, device=device, dtype=layer.dtype) if layer.bias else None
    call = AttentionCall(q, k, v, mask, bias)
    asked = replace(
        seeing.statistics,
        rows=None if seeing.statistics.rows is None else tuple(range(min(queries, len(seeing.statistics.rows)))),
        columns=None if seeing.statistics.columns is None else tuple(range(min(keys, len(seeing.statistics.columns)))),
    )
    times = []
    for _ in range(RUNS + 1):
        _wait_for(device)
        start = time.perf_counter()
        measure(call, asked, output=True)
        _wait_for(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[RUNS // 2] / _pairs(call.sizes, causal=layer.causal)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
