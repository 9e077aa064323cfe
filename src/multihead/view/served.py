"""What a served page asks for, computed when it asks, and only what it shows.

Tiles of a head's map, whole rows and columns of weights, the strongest partners of a token.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from multihead.errors import RecordingError
from multihead.front.document import CELLS, Node, placement, texts_of
from multihead.front.front import Front, served_document
from multihead.front.opening import opens_by_text, start_by_text
from multihead.kernels.collectors import largest
from multihead.recording import Layer, Recording
from multihead.recording.maps import LayerMap
from multihead.recording.outline import check_item
from multihead.recording.query import weights
from multihead.recording.whole import Pause
from multihead.view.entries import overview, sampled_overview
from multihead.view.heads import quick_traits
from multihead.view.opening import start
from multihead.view.parameters import Parameters
from multihead.view.pictures import Pictures, first_token, named, nodes
from multihead.web import Answer, Lane, Memory, Refusal, Watched

CACHE_BYTES = 256 << 20
"""Answers that are remembered, up to so many bytes."""

OVERVIEW_WEIGHTS = 1 << 29
"""Weights that overviews may take at the start, a few seconds' worth; beyond, some queries stand for all."""

TILE_WORKERS = 2
"""Tiles that are computed at once; a page asks for several."""

ANSWER_BYTES = 1 << 26
"""Bytes of the largest answer."""


class Served:
    """One sequence of a recording as the server's answers: the page, and the numbers that it asks for.

    Args:
        recording: with q, k and lse, with weights, or with block maps for what can be shown of them.
        item: the sequence of the batch.
        title: the page's; None: the model's name.
        opening: what the page opens with; None: a likely token, and the head that tells most about it.
        watched: the files that must stay as they are.
        pictures: as for :func:`multihead.view.page.page`.
        kind: whom the page asks for its numbers: this ``server``, or the notebook whose ``frame`` it is in.
        front: the page, where it was made before; None: it is made here.

    Raises:
        ValueError: the recording holds no layer, or its texts or pictures do not fit.
        RecordingError: there is no such sequence, or a layer holds nothing to show.

    Memory: the page, ``CACHE_BYTES`` of answers, and what :class:`multihead.recording.maps.LayerMap` keeps.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        item: int = 0,
        title: str | None = None,
        opening: Mapping[str, object] | None = None,
        watched: Sequence[Watched] = (),
        pictures: Pictures | None = None,
        kind: Literal["server", "frame"] = "server",
        front: Front | None = None,
    ) -> None:
        if not recording.layers:
            raise ValueError("the recording holds no layer, so there is nothing to show: observe at least one.")
        for layer in recording.layers:
            check_item(item, layer.sizes.batch)
        recording = named(recording, pictures, item)
        self.recording, self.item = recording, item
        self.maps = [LayerMap(layer, item) for layer in recording.layers]
        self.texts = texts_of(recording, item)
        self.places = [_places(layer, self.texts) for layer in recording.layers]
        if front is None:
            chosen = _opening(recording, item, first_token(recording, pictures)) if opening is None else opening
            front = Front(self._described(title, kind, chosen, nodes(pictures)), watched)
        self.front = front
        memory = Memory(CACHE_BYTES)
        # a core for each piece of work: threads of one operation that wait for each other lose all on a busy machine
        begin = partial(_on_cores, 1, torch.get_num_threads())
        self._tiles, self._lines, self._blocks = (
            Lane(memory, workers=TILE_WORKERS, begin=begin),
            Lane(memory, begin=begin),
            Lane(finishes=True, begin=begin),
        )

    @property
    def document(self) -> Node:
        """Of the page."""
        return self.front.document

    def _described(
        self, title: str | None, kind: str, opening: Mapping[str, object], pictures: Mapping[str, Node]
    ) -> Node:
        """The document of the page."""
        layers = self.recording.layers
        pairs = sum(_pairs(layer) for layer in layers if layer.statistics.blocks is None)
        told, rows = {}, None
        if pairs > OVERVIEW_WEIGHTS:
            per_row = sum(_pairs(layer) // max(1, layer.query_count) for layer in layers)
            rows = max(1, OVERVIEW_WEIGHTS // (per_row * CELLS))
            told["overview measured on"] = f"at most {rows * CELLS} queries of each head"
        return served_document(
            self.recording,
            [self._overview(layer, rows) for layer in layers],
            quick_traits(self.recording, self.item),
            item=self.item,
            title=title,
            start=opening,
            kind=kind,
            told=told,
            pictures=pictures,
        )

    def _overview(self, layer: Layer, rows: int | None) -> np.ndarray:
        if layer.statistics.blocks is not None or rows is None or rows * CELLS >= layer.query_count:
            return overview(layer, self.item)
        return sampled_overview(layer, self.item, rows)

    async def answer(self, name: str, parameters: Mapping[str, str], gone: Callable[[], Awaitable[bool]]) -> Answer:
        """The answer to one request; see ``docs/server.md``.

        Raises:
            Refusal: there is none, with the status and the sentence that say why.
            Stopped: the client has left.
        """
        found = self.front.answer(name)
        if found is not None:
            return found
        try:
            match name:
                case "tile":
                    return Answer(await self._tile(Parameters(parameters), gone))
                case "row" | "column":
                    return Answer(await self._line(name, Parameters(parameters), gone))
                case "partners":
                    return Answer(await self._partners(Parameters(parameters), gone), "application/json")
        except RecordingError as error:
            raise Refusal(404, _sentence(error)) from error
        raise Refusal(404, "There is nothing of this name here.")

    def close(self) -> None:
        """End what runs."""
        for lane in (self._tiles, self._lines, self._blocks):
            lane.close()

    def _pausing(self, pause: Pause) -> Pause:
        def between_pieces() -> None:
            pause()
            self.front.check()

        return between_pieces

    async def _tile(self, asked: Parameters, gone: Callable[[], Awaitable[bool]]) -> bytes:
        place = self._layer(asked)
        head, level, y, x = (asked.number(name) for name in ("head", "z", "y", "x"))
        pooling = asked.one_of("pooling", ("mean", "max"))
        found = self.maps[place]
        found.shape(level)

        def measure(pause: Pause) -> bytes:
            found.measure(head, pause=self._pausing(pause))
            return b""

        def compute(pause: Pause) -> bytes:
            pausing = self._pausing(pause)
            pausing()
            return _bytes(found.tile(head, level, y, x, pooling, pause=pausing))

        # it may have to read queries and keys, and others must be answered meanwhile
        if await asyncio.to_thread(found.lacks_blocks, head, level, y, x, pooling):
            await self._blocks.answer((place, head), measure, gone)
        return await self._tiles.answer(("tile", place, head, level, y, x, pooling), compute, gone)

    async def _line(self, name: str, asked: Parameters, gone: Callable[[], Awaitable[bool]]) -> bytes:
        """A row or a column of some heads."""
        place = self._layer(asked)
        layer, heads = self.recording.layers[place], asked.numbers("heads")
        if name == "row":
            queries, keys = [self._query(place, asked.number("query"))], None
            length = layer.sizes.keys
        else:
            queries, keys = None, [asked.number("key")]
            length = layer.query_count
        if 4 * len(heads) * length > ANSWER_BYTES:
            raise Refusal(400, f"{len(heads)} heads of {length} numbers are too many at once: ask for fewer heads.")
        asking = partial(self._weights, layer, queries, keys)

        def compute(pause: Pause) -> bytes:
            return b"".join(_bytes(asking(head, self._pausing(pause))) for head in heads)

        which = asked.number("query" if name == "row" else "key")
        return await self._lines.answer((name, place, tuple(heads), which), compute, gone)

    def _weights(
        self, layer: Layer, queries: list[int] | None, keys: list[int] | None, head: int, pause: Pause
    ) -> Tensor:
        pause()
        return weights(layer, queries, keys, heads=[head], item=self.item).flatten()

    async def _partners(self, asked: Parameters, gone: Callable[[], Awaitable[bool]]) -> bytes:
        """Of every layer and head that reads a text, the strongest link of one of its tokens."""
        text, token = asked.number("text"), asked.number("token")
        direction = asked.one_of("direction", ("out", "in"))
        names = list(self.texts)
        if text >= len(names):
            raise Refusal(404, f"There is no text {text}: there are {len(names)}, counted from 0.")
        if token >= len(self.texts[names[text]]):
            raise Refusal(404, f"There is no token {token}: the text has {len(self.texts[names[text]])}.")

        def compute(pause: Pause) -> bytes:
            pausing = self._pausing(pause)
            places = range(len(self.maps))
            links = [link for place in places for link in self._links(place, names[text], token, direction, pausing)]
            return json.dumps(links, allow_nan=False).encode()

        return await self._lines.answer(("partners", text, token, direction), compute, gone)

    def _links(self, place: int, text: str, token: int, direction: str, pause: Pause) -> Iterator[dict[str, object]]:
        layer, positions = self.recording.layers[place], self.places[place]
        if (layer.query_text if direction == "out" else layer.key_text) != text:
            return
        queries = keys = None
        if direction == "out":
            row = _row_at(positions, token)
            if row is None:
                return
            queries = [row if layer.queries is None else layer.queries[row]]
        else:
            keys = [token]
        for head in layer.heads:
            found = self._weights(layer, queries, keys, head, pause)
            if not len(found):
                continue
            values, where = largest(found, 1)
            weight, other = values.item(), int(where.item())
            if weight > 0:
                other = other if direction == "out" else int(positions[other])
                yield {"layer": place, "head": head, "token": other, "weight": weight}

    def _layer(self, asked: Parameters) -> int:
        place = asked.number("layer")
        if place >= len(self.maps):
            raise Refusal(404, f"There is no layer at place {place}: there are {len(self.maps)}, counted from 0.")
        return place

    def _query(self, place: int, position: int) -> int:
        """The number of the query that stands at a position in its text."""
        layer = self.recording.layers[place]
        row = _row_at(self.places[place], position)
        if row is None:
            raise Refusal(404, f"The query at position {position} was not recorded in layer {layer.index}.")
        return row if layer.queries is None else layer.queries[row]


def _on_cores(count: int, every: int) -> None:
    """Let torch use so many threads for what the calling thread asks of it, and ``every`` for who has not asked yet."""
    # a thread's first question makes it take what was set last
    torch.get_num_threads()
    torch.set_num_threads(count)
    last = threading.Thread(target=torch.set_num_threads, args=(every,))
    last.start()
    last.join()


def _sentence(error: Exception) -> str:
    words = str(error)
    return words[:1].upper() + words[1:]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().astype("<f4").tobytes()


def _pairs(layer: Layer) -> int:
    return len(layer.heads) * layer.query_count * layer.sizes.keys


def _places(layer: Layer, texts: dict[str, list[str]]) -> np.ndarray:
    """Where each recorded query stands in its text."""
    positions = placement(layer, texts).positions
    return np.arange(layer.query_count) if positions is None else np.array(positions, dtype=np.int64)


def _row_at(positions: np.ndarray, position: int) -> int | None:
    """The recorded query that stands at a position."""
    found = np.flatnonzero(positions == position)
    return int(found[0]) if len(found) else None


def _opening(recording: Recording, item: int, token: int | None) -> dict[str, object]:
    """What the page opens with; of a large recording no more than its text is read for it."""
    return start_by_text(recording, item, token) if opens_by_text(recording) else start(recording, token, item=item)
