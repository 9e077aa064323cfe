"""Weights of one head in pieces that stay in a core's own cache, from q and k or from given weights."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from multihead.kernels.seen import spans_and_rest
from multihead.masks import Mask
from multihead.precision import statistics_dtype
from multihead.recording.layer import Layer
from multihead.recording.selection import narrowed, sequence_of
from multihead.recording.whole import Pause, kept_of

HEIGHT, WIDTH = 512, 1024
"""Queries and keys of one piece."""


def pieces(
    layer: Layer, item: int, place: int, rows: range, keys: range, side: int, pause: Pause | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Weights in pieces: first row, first key, (rows, keys) that hold until the next; what nobody sees is left out.

    Args:
        layer: with q, k and the log-sum-exp, or with weights.
        item: the sequence in the batch.
        place: of the head among those kept.
        rows: of the kept queries.
        keys: key numbers.
        side: of the cells that are made of them: pieces hold whole cells or lie within one.
        pause: called before each piece.
    """
    held = layer.weights
    if held is not None:
        yield from _given(held[item, place], rows, keys, pause)
        return
    seen = _Sight(layer, item, place, rows)
    q, k, lse = kept_of(layer)
    dtype = statistics_dtype(q.dtype)
    q, k, lse = q[item, place], k[item, layer.kv_heads[place]], lse[item, place].to(dtype)
    room = torch.empty(min(HEIGHT, len(rows)), min(WIDTH, len(keys)), dtype=dtype, device=q.device)
    step = min(side, WIDTH)
    for top in range(rows.start, rows.stop, HEIGHT):
        band = range(top, min(top + HEIGHT, rows.stop))
        queries = q[band.start : band.stop].to(dtype) * layer.scale
        shift = lse[band.start : band.stop, None]
        # a row that sees nothing has weights 0
        shift = shift.masked_fill(shift == -torch.inf, torch.inf)
        ends = seen.range_of(band, keys)
        for left in range(ends.start // step * step, ends.stop, WIDTH) if ends else ():
            if pause is not None:
                pause()
            span = range(left, min(left + WIDTH, keys.stop))
            scores = room[: len(band), : len(span)]
            torch.mm(queries, k[span.start : span.stop].to(dtype).T, out=scores)
            if layer.softcap is not None:
                scores.div_(layer.softcap).tanh_().mul_(layer.softcap)
            seen.finish(scores, band, span)
            yield top, left, scores.sub_(shift).exp_()


class _Sight:
    """What a mask and a bias say about one head's recorded rows, a piece at a time."""

    def __init__(self, layer: Layer, item: int, place: int, rows: range) -> None:
        self.layer, self.item, self.head = layer, item, layer.heads[place]
        device = kept_of(layer)[0].device
        numbered = torch.arange(rows.start, rows.stop, device=device)
        self.first_row = rows.start
        self.queries = numbered if layer.queries is None else torch.tensor(layer.queries, device=device)[numbered]
        self.bias = None
        if layer.bias is not None:
            bias = sequence_of(layer.bias, item)
            self.bias = bias[0, 0 if bias.shape[1] == 1 else place]
        mask = None if layer.mask is None else narrowed(layer.mask, item, self.head)
        spans, self.rest = spans_and_rest(mask, self.queries, layer.sizes)
        self.spans = None if spans is None else tuple(self._of_head(end) for end in spans)

    def _of_head(self, answer: Tensor) -> Tensor:
        """What a mask answers about this sequence and head; it may know no difference between them."""
        answer = answer[0 if answer.shape[0] == 1 else self.item]
        return answer[0 if answer.shape[0] == 1 else self.head]

    def _rows(self, band: range) -> slice:
        return slice(band.start - self.first_row, band.stop - self.first_row)

    def range_of(self, band: range, keys: range) -> range:
        """The keys outside which these rows see nothing."""
        start, stop = keys.start, keys.stop
        if self.spans is not None:
            first, last = (end[self._rows(band)] for end in self.spans)
            seeing = first < last
            if not seeing.any():
                return range(start, start)
            start, stop = max(start, int(first[seeing].min())), min(stop, int(last.max()))
        if self.rest is not None:
            queries = self.queries[self._rows(band)]
            first, last = self.rest.key_range(int(queries.min()), int(queries.max()), self.layer.sizes)
            start, stop = max(start, first), min(stop, last)
        return range(start, max(start, stop))

    def finish(self, scores: Tensor, band: range, keys: range) -> None:
        """Add the bias to scores and hide what is not seen, in place."""
        rows = self._rows(band)
        if self.bias is not None:
            bias = self.bias if self.bias.shape[0] == 1 else self.bias[band.start : band.stop]
            scores += bias if bias.shape[1] == 1 else bias[:, keys.start : keys.stop]
        if self.spans is not None:
            first, stop = (end[rows, None] for end in self.spans)
            if int(first.max()) > keys.start or int(stop.min()) < keys.stop:
                places = torch.arange(keys.start, keys.stop, device=scores.device)
                scores.masked_fill_((places < first) | (places >= stop), -torch.inf)
        if self.rest is not None:
            scores.masked_fill_(~self._visible(self.rest, self.queries[rows], keys), -torch.inf)

    def _visible(self, mask: Mask, queries: Tensor, keys: range) -> Tensor:
        places = torch.arange(keys.start, keys.stop, device=queries.device)
        return self._of_head(mask.visible(queries, places, self.layer.sizes))


def _given(
    weights: Float[Tensor, "query key"], rows: range, keys: range, pause: Pause | None
) -> Iterator[tuple[int, int, Tensor]]:
    """Weights that are there, in pieces."""
    for top in range(rows.start, rows.stop, HEIGHT):
        for left in range(keys.start, keys.stop, WIDTH):
            if pause is not None:
                pause()
            yield top, left, weights[top : min(top + HEIGHT, rows.stop), left : min(left + WIDTH, keys.stop)]
