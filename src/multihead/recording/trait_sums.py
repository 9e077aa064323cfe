"""What traits of heads are made of: sums over queries, read from a layer's statistics or measured.

Each has the form (heads, queries) where single queries are known, or (heads,) and (heads, keys) where their sum is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multihead.core import MassOn, Measurements, RowStatistic, Statistics, WeightTile
from multihead.kernels import measure
from multihead.masks import Mask
from multihead.recording.layer import Layer
from multihead.recording.selection import hidden_as_padding, sequence_of
from multihead.recording.whole import aligned, call_of, mask_of, sink_of

if TYPE_CHECKING:
    from multihead.recording.recording import Recording

FAR = 32
"""From this distance on, in tokens, a key is far: farther than most sentences are long."""

_COUNTED = 1 << 22
"""Pairs of a mask that are looked at together."""


@dataclass(frozen=True)
class Seen:
    """Which queries count, and what they see; on the CPU."""

    real: Bool[Tensor, " query"]
    """Of the recorded queries, those that are no padding."""
    positions: Int[Tensor, " query"] | None
    """Where they stand among the keys; None where that means nothing."""
    visible: Int[Tensor, "head_or_1 query"] | None
    """How many keys each sees; None where it is not known."""
    keys: Bool[Tensor, "head_or_1 key"] | None
    """The keys that some of those that count see; None where it is not known."""
    first: int
    """The first key that is no padding."""

    @classmethod
    def of(cls, recording: "Recording", layer: Layer, item: int, *, by_pairs: bool) -> "Seen":
        """As the masks of all layers say it."""
        device = _device(layer)
        queries = torch.arange(layer.query_count, device=device)
        if layer.queries is not None:
            queries = torch.tensor(layer.queries, dtype=torch.int64, device=device)
        valid = {name: real.to(device) for name, real in _real_tokens(recording, item).items()}
        real = torch.ones(len(queries), dtype=torch.bool, device=device)
        if layer.query_text in valid:
            tokens = valid[layer.query_text]
            places = queries + layer.place_of_query(0, len(tokens))
            inside = places < len(tokens)
            real = ~inside | tokens[places.where(inside, 0)]
        keys = hidden_as_padding(layer.mask)
        keys = valid.get(layer.key_text) if keys is None else sequence_of(keys, item)[0]
        first = 0 if keys is None or len(keys) != layer.sizes.keys or not len(keys) else int(keys.int().argmax())
        one_text = layer.query_text == layer.key_text and layer.sizes.offset >= 0
        positions = queries + layer.sizes.offset if one_text else None
        visible, seen = _visibility(layer, item, real, by_pairs=by_pairs)
        return cls(
            real.cpu(),
            None if positions is None else positions.cpu(),
            None if visible is None else visible.cpu(),
            None if seen is None else seen.cpu(),
            first,
        )


def _device(layer: Layer) -> torch.device:
    # q is read from its file where it is asked for
    known = next(iter(layer.statistics.named().values()), None)
    known = layer.q if known is None else known
    return torch.device("cpu") if known is None else known.device


def _real_tokens(recording: "Recording", item: int) -> dict[str, Tensor]:
    """For each text that some layer hides a part of as padding: (tokens,), False at padding."""
    found: dict[str, Tensor] = {}
    for layer in recording.layers:
        valid = None if layer.key_text in found else hidden_as_padding(layer.mask)
        if valid is not None:
            found[layer.key_text] = sequence_of(valid, item)[0]
    return found


def _visibility(layer: Layer, item: int, real: Tensor, *, by_pairs: bool) -> tuple[Tensor | None, Tensor | None]:
    """For each query how many keys it sees, and which keys some real query sees.

    Linear where the mask is one range a query; else all pairs are looked at, if that is allowed. Given weights know no
    mask: what has weight is seen.
    """
    device, keys, count = real.device, layer.sizes.keys, len(real)
    if layer.weights is not None:
        return _weighty(layer.weights[item], real) if by_pairs else (None, None)
    if layer.mask is None:
        some = torch.full((1, keys), bool(real.any()), device=device)
        return torch.full((1, count), keys, device=device), some
    mask = mask_of(layer, item, layer.mask, device)
    spans = mask.spans(torch.arange(count, device=device), layer.sizes)
    if spans is not None:
        first, stop = (side[0].clamp(0, keys).expand(-1, count) for side in spans)
        first, stop = torch.broadcast_tensors(first, torch.maximum(first, stop))
        # as many ranges are open at a key as have begun by then and not ended
        turns = torch.zeros(len(first), keys + 1, dtype=torch.int64, device=device)
        counted = real.long().expand_as(first)
        turns.scatter_add_(1, first, counted).scatter_add_(1, stop, -counted)
        return stop - first, turns.cumsum(1)[:, :keys] > 0
    if by_pairs:
        return _counted(mask, layer, real)
    recorded = layer.statistics.visible
    return (None if recorded is None else recorded[item]), None


def _weighty(weights: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_visibility`, by which weights are above 0."""
    visible = torch.stack([(head > 0).sum(1) for head in weights])
    return visible, torch.stack([(head[real] > 0).any(0) for head in weights])


def _counted(mask: Mask, layer: Layer, real: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`_visibility`, pair by pair."""
    device, keys, count = real.device, layer.sizes.keys, len(real)
    heads = mask.visible(*(torch.zeros(1, dtype=torch.int64, device=device),) * 2, layer.sizes).shape[1]
    step = max(1, _COUNTED // max(1, heads * keys))
    every = torch.arange(keys, device=device)
    visible = torch.zeros(heads, count, dtype=torch.int64, device=device)
    seen = torch.zeros(heads, keys, dtype=torch.bool, device=device)
    for places in torch.arange(count, device=device).split(step):
        tile = mask.visible(places, every, layer.sizes)[0].expand(heads, len(places), keys)
        visible[:, places] = tile.sum(2)
        seen |= (tile & real[places, None]).any(1)
    return visible, seen


def recorded(layer: Layer, item: int, seen: Seen) -> dict[str, Tensor]:
    """What the layer's statistics say exactly: (heads, queries), or (heads,) and (heads, keys) of sums over queries."""
    own = {
        name: (tensor[item] if layer.axes(name)[0] == "batch" else tensor).cpu()
        for name, tensor in layer.statistics.named().items()
    }
    known = {"entropy": own["entropy"]} if "entropy" in own else {}
    sink = sink_of(layer, item)
    if sink is not None:
        known["sink"] = sink.cpu()
    elif layer.sinks is None:
        known["sink"] = seen.real.new_zeros(len(layer.heads), len(seen.real), dtype=torch.float64)
    if seen.first in (chosen := own["column_keys"].tolist() if "columns" in own else []):
        known["first"] = own["columns"][:, :, chosen.index(seen.first)]
    # sums over queries hold those that are padding too
    if not seen.real.all():
        return known
    if "received" in own:
        known["received"] = own["received"]
    if "offsets" in own and seen.positions is not None:
        known |= _by_distance(own["offsets"], own["offset_edges"].tolist(), seen, layer.sizes.keys)
    return known


_PLACES = {"previous": 1, "itself": 0, "next": -1}
"""Distance of the keys at fixed places: query position minus key."""


def _by_distance(mass: Tensor, edges: Sequence[int], seen: Seen, keys: int) -> dict[str, Tensor]:
    """What attention mass in bins of distance, (heads, bins), says exactly about distances."""
    assert seen.positions is not None  # noqa: S101  without positions there are no distances
    if not len(seen.positions):
        return {}
    least, most = int(seen.positions.min()) - keys + 1, int(seen.positions.max())
    bins = [(max(low, least), min(high, most + 1)) for low, high in pairwise(edges)]
    covered = edges[0] <= least and edges[-1] > most

    def between(low: int, high: int) -> Tensor | None:
        """The mass from one distance up to another; None where the edges do not tell."""
        low, high = max(low, least), min(high, most + 1)
        inside = [low <= first and stop <= high for first, stop in bins]
        apart = [stop <= low or high <= first for first, stop in bins]
        held = sum(max(0, stop - first) for (first, stop), here in zip(bins, inside, strict=True) if here)
        if held < high - low or not all(a or b for a, b in zip(inside, apart, strict=True)):
            return None
        return mass[:, [place for place, here in enumerate(inside) if here]].sum(1)

    found = {name: between(distance, distance + 1) for name, distance in _PLACES.items()}
    before, after = between(FAR, most + 1), between(least, 1 - FAR)
    found["far"] = None if before is None or after is None else before + after
    if covered and all(stop - first <= 1 for first, stop in bins):
        distances = torch.tensor([abs(first) for first, _ in bins], dtype=torch.float64, device=mass.device)
        found["distance"] = mass.double() @ distances
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, eq=False)
class _ByDistance(RowStatistic):
    """Σⱼ Pᵢⱼ f(|i - j|), with i the position of each query among the keys."""

    name: str  # pyrefly: ignore[bad-override]
    positions: Int[Tensor, " query"]
    factor: Callable[[Tensor], Tensor]

    def of(self, tile: WeightTile) -> Float[Tensor, "batch head query"]:
        keys = torch.arange(tile.keys.start, tile.keys.stop, device=tile.weights.device)
        apart = (self.positions[tile.queries.cpu(), None].to(keys.device) - keys).abs()
        return torch.einsum("bhqk,qk->bhq", tile.weights, self.factor(apart).to(tile.weights))


@dataclass(frozen=True, eq=False)
class _AtDistance(RowStatistic):
    """The weight that each query gives the key so many tokens before it, 0 where there is none."""

    name: str  # pyrefly: ignore[bad-override]
    positions: Int[Tensor, " query"]
    distance: int

    def of(self, tile: WeightTile) -> Float[Tensor, "batch head query"]:
        places = self.positions[tile.queries.cpu()].to(tile.weights.device) - self.distance - tile.keys.start
        width = tile.weights.shape[-1]
        if not width:
            return tile.weights.sum(-1)
        here = places.clamp(0, width - 1).expand(tile.weights.shape[:-1])[..., None]
        return tile.weights.gather(-1, here)[..., 0] * ((places >= 0) & (places < width))


def measured(
    layer: Layer, item: int, seen: Seen, known: Mapping[str, Tensor], marks: Tensor | None
) -> dict[str, Tensor]:
    """What is not known yet, from one pass over all pairs; nothing where a layer holds neither q and k nor weights."""
    own: list[RowStatistic] = []
    if marks is not None:
        own.append(MassOn("delimiters", marks))
    if seen.positions is not None:
        own += [_AtDistance(name, seen.positions, by) for name, by in _PLACES.items() if name not in known]
        factors: dict[str, Callable[[Tensor], Tensor]] = {
            "distance": lambda apart: apart,
            "far": lambda apart: apart >= FAR,
        }
        own += [_ByDistance(name, seen.positions, factor) for name, factor in factors.items() if name not in known]
    if layer.weights is not None:
        return _of_given(layer.weights[item].cpu(), seen, own)
    if layer.q is None or layer.k is None:
        return {}
    asked = Statistics.only(
        entropy="entropy" not in known,
        sink="sink" not in known,
        received="received" not in known,
        columns=None if "first" in known or not layer.sizes.keys else (seen.first,),
        own=tuple(own),
    )
    places = seen.real.nonzero()[:, 0]
    chosen = None if len(places) == len(seen.real) else places.to(layer.q.device)
    _, found = measure(aligned(call_of(layer, item)), asked, queries=chosen)
    return dict(_spread_out(found, places, len(seen.real)))


def _of_given(weights: Tensor, seen: Seen, own: Sequence[RowStatistic]) -> dict[str, Tensor]:
    """The same from weights that were given, (heads, queries, keys), a head at a time."""
    heads, queries, keys = weights.shape
    found = {statistic.name: weights.new_zeros(heads, queries) for statistic in own}
    every = torch.arange(queries, device=weights.device)
    for head in range(heads):
        one = slice(head, head + 1)
        tile = WeightTile(weights[None, one], slice(0, 1), one, every, slice(0, keys))
        for statistic in own:
            found[statistic.name][head] = statistic.of(tile)[0, 0]
    if keys:
        found["first"] = weights[:, :, seen.first]
    return found


def _spread_out(found: Measurements, places: Tensor, count: int) -> Iterator[tuple[str, Tensor]]:
    """Measurements of some queries as of all, 0 at the others."""
    for name, tensor in found.named().items():
        if name == "received":
            yield name, tensor[0].cpu()
        elif name in ("entropy", "sink", "columns") or name.startswith("row_statistics."):
            values = (tensor[0] if name != "columns" else tensor[0, :, :, 0]).cpu()
            whole = values.new_zeros(len(values), count)
            whole[:, places] = values
            yield {"columns": "first"}.get(name, name.removeprefix("row_statistics.")), whole
