"""The traits of a recording's heads: what its statistics say (``traits``), and what is measured where they do not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.core import MassOn, Measurements, RowStatistic, Statistics, WeightTile
from multihead.counting import whole_numbers
from multihead.kernels import measure
from multihead.masks import Mask
from multihead.recording.layer import Layer
from multihead.recording.outline import check_item
from multihead.recording.selection import hidden_as_padding, sequence_of
from multihead.recording.traits import (
    FAR,
    PLACES,
    READ,
    HeadTraits,
    Seen,
    Traits,
    head_traits,
    kept_queries,
    recorded,
    seen_in_ranges,
)
from multihead.recording.whole import aligned, call_of, mask_of, sink_of
from multihead.recording.words import is_mark

if TYPE_CHECKING:
    from multihead.recording.recording import Recording

_COUNTED = 1 << 22
"""Pairs of a mask that are looked at together."""


def traits_of(
    recording: "Recording", *, layers: Sequence[int] | None = None, item: int = 0, measure: bool = True
) -> Traits:
    """See :meth:`Recording.traits`."""
    check_item(item, recording.batch)
    chosen = recording.layers if layers is None else [recording.layer(one) for one in whole_numbers("layers", layers)]
    return Traits(traits for layer in chosen for traits in layer_traits(recording, layer, item=item, measure=measure))


@torch.no_grad()
def layer_traits(recording: "Recording", layer: Layer, *, item: int = 0, measure: bool = True) -> list[HeadTraits]:
    """The traits of each recorded head of one layer, in their order.

    Args:
        recording: whose layer it is; it knows the tokens, and which of them are padding.
        layer: one of its layers.
        item: the sequence in the batch.
        measure: whether to measure what the layer's statistics do not say.

    Memory: linear in the tokens; time, where something is measured: a pass over all pairs.
    """
    seen = _seen(recording, layer, item, by_pairs=measure)
    learned = layer.sinks is not None
    known = recorded(layer, _statistics(layer, item), seen, learned=learned)
    if measure:
        known |= measured(layer, item, seen, known, _marks(recording.texts.get(layer.key_text), item))
    return head_traits(layer, known, seen, learned=learned)


def _marks(text: Sequence[Sequence[str]] | None, item: int) -> Tensor | None:
    """(keys,), True at special tokens and punctuation; None without tokens."""
    return torch.tensor(list(map(is_mark, text[item])), dtype=torch.bool) if text and text[item] else None


def _statistics(layer: Layer, item: int) -> dict[str, np.ndarray]:
    """Those of ``READ`` that the layer has, of one sequence; what went to learned sinks may follow from the others."""
    held = {name: getattr(layer.statistics, name) for name in READ}
    own = {
        name: tensor[item] if layer.axes(name)[0] == "batch" else tensor
        for name, tensor in held.items()
        if tensor is not None
    }
    sink = sink_of(layer, item)
    return {name: _array(tensor) for name, tensor in (own if sink is None else own | {"sink": sink}).items()}


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers as numpy's, which has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _seen(recording: "Recording", layer: Layer, item: int, *, by_pairs: bool) -> Seen:
    """Which queries count and what they see, as the masks of all layers say it."""
    device = _device(layer)
    queries = torch.from_numpy(kept_queries(layer)).to(device)
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
    return Seen.of(layer, real.cpu().numpy(), *_visibility(layer, item, real, by_pairs=by_pairs), first)


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


def _visibility(
    layer: Layer, item: int, real: Tensor, *, by_pairs: bool
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """For each query how many keys it sees, and which keys some real query sees.

    Linear where the mask is one range a query; else all pairs are looked at, if that is allowed. Given weights know no
    mask: what has weight is seen.
    """
    device, keys, count = real.device, layer.sizes.keys, len(real)
    if layer.weights is not None:
        return _arrays(_weighty(layer.weights[item], real)) if by_pairs else (None, None)
    if layer.mask is None:
        whole = np.zeros((1, count), np.int64), np.full((1, count), keys)
        return seen_in_ranges(*whole, real.cpu().numpy(), keys)
    mask = mask_of(layer, item, layer.mask, device)
    spans = mask.spans(torch.arange(count, device=device), layer.sizes)
    if spans is not None:
        first, stop = torch.broadcast_tensors(*(side[0].expand(-1, count) for side in spans))
        return seen_in_ranges(*_arrays((first, stop)), real.cpu().numpy(), keys)
    if by_pairs:
        return _arrays(_counted(mask, layer, real))
    recorded = layer.statistics.visible
    return (None if recorded is None else _array(recorded[item])), None


def _arrays(pair: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    return _array(pair[0]), _array(pair[1])


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
    layer: Layer, item: int, seen: Seen, known: Mapping[str, np.ndarray], marks: Tensor | None
) -> dict[str, np.ndarray]:
    """What is not known yet, from one pass over all pairs; nothing where a layer holds neither q and k nor weights."""
    own: list[RowStatistic] = []
    if marks is not None:
        own.append(MassOn("delimiters", marks))
    if seen.positions is not None:
        positions = torch.from_numpy(seen.positions)
        own += [_AtDistance(name, positions, by) for name, by in PLACES.items() if name not in known]
        factors: dict[str, Callable[[Tensor], Tensor]] = {
            "distance": lambda apart: apart,
            "far": lambda apart: apart >= FAR,
        }
        own += [_ByDistance(name, positions, factor) for name, factor in factors.items() if name not in known]
    if layer.weights is not None:
        given = _of_given(layer.weights[item].cpu(), seen, own)
        return {name: _array(tensor) for name, tensor in given.items()}
    if layer.q is None or layer.k is None:
        return {}
    asked = Statistics.only(
        entropy="entropy" not in known,
        sink="sink" not in known,
        received="received" not in known,
        columns=None if "first" in known or not layer.sizes.keys else (seen.first,),
        own=tuple(own),
    )
    places = torch.from_numpy(np.flatnonzero(seen.real))
    chosen = None if len(places) == len(seen.real) else places.to(layer.q.device)
    _, found = measure(aligned(call_of(layer, item)), asked, queries=chosen)
    return {name: _array(tensor) for name, tensor in _spread_out(found, places, len(seen.real))}


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
