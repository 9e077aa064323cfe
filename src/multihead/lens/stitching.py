"""The runs of one generation as one: each attention with a row for every token that was read, at its place in the text.

A run of a step has one query, and the keys of all tokens so far (a growing cache), of some that are not there yet too
(a fixed one), or of the last few (a sliding one). Where its keys stand in the text follows from how many there are;
that they do stand there is proved by comparing them, bit for bit, with those of the runs before. So sequences that
changed places between two steps, as in beam search, are found out and refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multihead.core import AttentionCall, Measurements, PartOfMask, Statistics
from multihead.errors import ObservationError
from multihead.kernels import measure
from multihead.lens.measuring import Sight
from multihead.lens.texts import crosses
from multihead.masks import And, Causal, Mask, Sizes, SlidingWindow, dense, padding
from multihead.recording import Layer

BLOCK = 1 << 22
"""Elements of a mask that are looked at together."""


def stitched(runs: Sequence[Sequence[Sight]], statistics: Statistics) -> tuple[Sight, ...]:
    """One attention for each that appeared in any run, over all tokens that were read.

    Args:
        runs: of one generation, in order: perhaps an encoder, then the prompt, then one token after the other.
        statistics: what to measure of the whole.

    Raises:
        ObservationError: the runs are not those of one generation, or do not hold what is needed.
    """
    by_layer: dict[int, list[tuple[int, Sight]]] = {}
    for number, run in enumerate(runs):
        for sight in run:
            by_layer.setdefault(sight.layer.index, []).append((number, sight))
    batches = {parts[0][1].layer.sizes.batch: index for index, parts in sorted(by_layer.items(), reverse=True)}
    if len(batches) > 1:
        (few, one), (many, other) = sorted(batches.items())[:2]
        raise ObservationError(
            f"layer {one} saw {few} sequences and layer {other} {many}, as in beam search: generate with num_beams=1 "
            "and one returned sequence for each text, or take one run with recording(run=...)."
        )
    return tuple(_joined([*parts], statistics) for _, parts in sorted(by_layer.items()))


def prompt_tokens(runs: Sequence[Sequence[Sight]]) -> int:
    """How many tokens the first run read of the text that later runs go on with."""
    again = {sight.layer.index for sight in runs[-1]}
    first = next(run for run in runs if again & {sight.layer.index for sight in run})
    return max(sight.layer.sizes.queries for sight in first if sight.layer.index in again)


def _joined(parts: list[tuple[int, Sight]], statistics: Statistics) -> Sight:
    """What several runs say of one attention, as one."""
    _, first = parts[0]
    if len(parts) == 1:
        return first
    layer = first.layer
    where = f"layer {layer.index} ({layer.name or 'the model itself'})"
    if layer.q is None or layer.k is None:
        raise ObservationError(
            f"{where} holds no queries and keys, of which its runs are made one: observe with qk=True."
        )
    if layer.queries is not None:
        raise ObservationError(f"{where} holds some queries of each run only: observe without queries=.")
    if first.extra_keys:
        raise ObservationError(f"{where} has keys that belong to no token, so its runs cannot be made one.")
    cross = crosses(layer.name, layer.host, layer.sizes, (), said=first.cross, two=False)
    pieces = list(_pieces(parts, cross=cross, where=where))
    rows = sum(piece.rows for piece in pieces)
    keys = layer.sizes.keys if cross else rows
    sizes = Sizes(layer.sizes.batch, layer.sizes.heads, rows, keys)
    q = torch.cat([piece.q for piece in pieces], 2)
    k = _keys(pieces, keys, where)
    mask = _Visibility(pieces, sizes).mask()
    bias = _bias(pieces, sizes)
    whole = replace(layer, sizes=sizes, q=q, k=k, mask=mask, bias=bias, statistics=Measurements())
    try:
        _, found = measure(_call(whole), statistics)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return replace(first, layer=replace(whole, statistics=found))


@dataclass(frozen=True)
class _Piece:
    """One run of an attention, and its place in the whole."""

    run: int
    layer: Layer
    q: Tensor
    k: Tensor
    """Of the keys that are tokens, in the order of the text."""
    row: int
    """The first of its queries."""
    key: int
    """The first of its keys."""
    new: int
    """How many of its keys, from the last, no run before had."""

    @property
    def rows(self) -> int:
        """How many queries."""
        return self.layer.sizes.queries

    @property
    def keys(self) -> int:
        """How many keys that are tokens."""
        return self.k.shape[2]

    def visible(self, rows: Tensor, keys: Tensor) -> Tensor:
        """What its own queries and keys see of each other, all axes but batch and head at their full size."""
        if self.layer.mask is None:
            return torch.ones(1, 1, len(rows), len(keys), dtype=torch.bool, device=rows.device)
        found = self.layer.mask.visible(rows, keys, self.layer.sizes)
        return found.expand(*found.shape[:2], len(rows), len(keys))


def _pieces(parts: list[tuple[int, Sight]], *, cross: bool, where: str) -> Iterator[_Piece]:
    row = 0
    model_heads, batch = parts[0][1].layer.heads, parts[0][1].layer.sizes.batch
    for run, sight in parts:
        layer = sight.layer
        rows, keys = layer.sizes.queries, layer.sizes.keys
        if layer.q is None or layer.k is None or (layer.heads, layer.sizes.batch) != (model_heads, batch):
            raise ObservationError(f"{where} has other heads or sequences in run {run} than before it.")
        stop = row + rows
        if cross:
            piece = _Piece(run, layer, layer.q, layer.k, row, 0, keys if not row else 0)
        elif keys >= stop:
            piece = _Piece(run, layer, layer.q, layer.k[:, :, :stop], row, 0, rows)
            _check_unfilled(piece, keys, where)
        elif keys > rows:
            piece = _Piece(run, layer, layer.q, layer.k, row, stop - keys, rows)
        else:
            raise ObservationError(
                f"{where} reads a text anew in run {run}: observe one generate() in each with block, with a cache; "
                "without one, recording() of the last run has the whole text."
            )
        yield piece
        row = stop


def _check_unfilled(piece: _Piece, keys: int, where: str) -> None:
    """Raise where a query sees a key that is no token yet."""
    if piece.keys == keys:
        return
    device = piece.q.device
    beyond = torch.arange(piece.keys, keys, device=device)
    for rows in torch.arange(piece.rows, device=device).split(max(1, BLOCK // max(1, len(beyond)))):
        if bool(piece.visible(rows, beyond).any()):
            raise _reordered(where, piece.run)


def _reordered(where: str, run: int) -> ObservationError:
    return ObservationError(
        f"{where} has other keys in run {run} than the runs before left there: sequences changed places, as in beam "
        "search, or tokens were taken back, as in assisted generation; generate without these, or take one run with "
        "recording(run=...)."
    )


def _keys(pieces: Sequence[_Piece], keys: int, where: str) -> Tensor:
    """The keys of all tokens; those that several runs have are the same, bit for bit."""
    first = pieces[0].k
    found = first.new_empty(*first.shape[:2], keys, first.shape[3])
    for piece in pieces:
        stop, old = piece.key + piece.keys, piece.keys - piece.new
        if not torch.equal(found[:, :, piece.key : piece.key + old], piece.k[:, :, :old]):
            raise _reordered(where, piece.run)
        found[:, :, piece.key + old : stop] = piece.k[:, :, old:]
    return found


def _bias(pieces: Sequence[_Piece], sizes: Sizes) -> Tensor | None:
    """What is added to the scores, 0 where a row does not see a key."""
    given = [piece.layer.bias for piece in pieces if piece.layer.bias is not None]
    if not given:
        return None
    batch, heads = (max(bias.shape[axis] for bias in given) for axis in (0, 1))
    found = given[0].new_zeros(batch, heads, sizes.queries, sizes.keys)
    for piece in pieces:
        if piece.layer.bias is not None:
            bias = piece.layer.bias[..., : piece.keys].expand(-1, -1, piece.rows, piece.keys)
            found[:, :, piece.row : piece.row + piece.rows, piece.key : piece.key + piece.keys] = bias
    return found


@dataclass
class _Visibility:
    """What the queries of all pieces see, and the smallest mask that says it."""

    pieces: Sequence[_Piece]
    sizes: Sizes

    def mask(self) -> Mask | None:
        """The mask of the whole; None where everything is seen."""
        for candidate in self._candidates():
            if all(bool((found == _said(candidate, rows, self.sizes)).all()) for rows, found in self._blocks()):
                return candidate
        return dense(torch.cat([found for _, found in self._blocks(whole=True)], 2))

    def _blocks(self, *, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Some rows at a time: their numbers, and what they see of all keys, (B or 1, H or 1, rows, keys)."""
        batch, heads = self._axes() if whole else (1, 1)
        for piece in self.pieces:
            device = piece.q.device
            keys = torch.arange(piece.keys, device=device)
            for rows in torch.arange(piece.rows, device=device).split(max(1, BLOCK // max(1, self.sizes.keys))):
                own = piece.visible(rows, keys)
                shape = (max(batch, own.shape[0]), max(heads, own.shape[1]), len(rows), self.sizes.keys)
                found = torch.zeros(shape, dtype=torch.bool, device=device)
                found[..., piece.key : piece.key + piece.keys] = own
                yield rows + piece.row, found

    def _axes(self) -> tuple[int, int]:
        shapes = [found.shape for _, found in self._blocks()]
        return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)

    def _candidates(self) -> Iterator[Mask | None]:
        """Masks that might say the same, the simplest first."""
        yield None
        seen = [found.any(2) for _, found in self._blocks()]
        seers = torch.stack([found.expand(self.sizes.batch, -1, -1).any(1) for found in seen]).any(0)
        real = None if bool(seers.all()) else padding(seers)
        if real is not None:
            yield real
        for window in self._windows():
            yield window
            if real is not None:
                yield window & real

    def _windows(self) -> list[Mask]:
        lefts = {window.left for piece in self.pieces for window in _sliding(piece.layer.mask) if window.right == 0}
        lefts |= {piece.keys - 1 for piece in self.pieces if piece.key > 0 and piece.rows == 1}
        return [Causal(), *(SlidingWindow(left, 0) for left in sorted(left for left in lefts if left is not None))]


def _said(mask: Mask | None, rows: Tensor, sizes: Sizes) -> Tensor:
    keys = torch.arange(sizes.keys, device=rows.device)
    if mask is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=rows.device)
    return mask.visible(rows, keys, sizes)


def _sliding(mask: Mask | None) -> Iterator[SlidingWindow]:
    match mask:
        case SlidingWindow():
            yield mask
        case And(left, right):
            yield from _sliding(left)
            yield from _sliding(right)


def _call(layer: Layer) -> AttentionCall:
    """The attention whose statistics a layer holds; it has no values, so its keys stand for them."""
    q, k = layer.q, layer.k
    assert q is not None and k is not None  # noqa: S101, PT018  checked by the caller
    heads, kept = len(layer.heads), k.shape[1]
    if layer.kv_heads != tuple(head * kept // heads for head in range(heads)) or heads % kept:
        k = k[:, list(layer.kv_heads)]
    mask = layer.mask
    if mask is not None and heads != layer.sizes.heads:
        mask = PartOfMask(mask, layer.sizes, heads=torch.tensor(layer.heads, device=q.device))
    return AttentionCall(q, k, k, mask, layer.bias, scale=layer.scale, softcap=layer.softcap, sinks=layer.sinks)


def without_the_last(
    tokens: Sequence[str] | Sequence[Sequence[str]] | None, read: int
) -> Sequence[str] | Sequence[Sequence[str]] | None:
    """The tokens that were read: of one more than these, the last was written and never read."""
    if tokens is None or isinstance(tokens, str):
        return tokens
    if all(isinstance(token, str) for token in tokens):
        return tokens[:read] if len(tokens) == read + 1 else tokens
    return [row[:read] if len(row) == read + 1 else row for row in tokens]


def read_by(sights: Sequence[Sight], last: Sequence[Sight]) -> int:
    """How many tokens the attentions of the last run have read."""
    written: Mapping[int, Layer] = {sight.layer.index: sight.layer for sight in sights}
    return max(written[sight.layer.index].sizes.queries for sight in last)
