"""Whole maps of weights, tokens along both axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from multihead.view.drawing.letters import Letters, label, shortened
from multihead.view.drawing.paper import (
    DECADES,
    DPI,
    EDGE,
    LABEL,
    POINT,
    SMALL,
    WIDTH,
    AttentionFigure,
    Look,
    Sheet,
    caption_lines,
    norm_of,
    title_room,
)

_GAP = 0.16
_BAR = 0.1
_BAR_ROOM = 0.62
_LARGEST_CELL = 0.3
_TALLEST = 8.5
_LOWEST = 0.55
_ABREAST = 4
_WORTH = 0.7
_LINE = 1.35
_PITCH = POINT * 1.15
_SMALLEST = 5.0


LARGEST = 480
"""Cells a side of a map; more tokens share cells."""


@dataclass(frozen=True)
class Side:
    """What stands along one axis."""

    name: str
    places: Sequence[int]
    """Of the tokens in their text."""
    tokens: Sequence[str]
    chosen: int | None = None
    """The place of the token that the figure is about."""

    def size(self, room: float) -> float:
        """Points of labels that have ``room`` inches each; below a limit labels are left out instead."""
        return min(LABEL, max(_SMALLEST, room / _PITCH))

    def chosen_cell(self, cells: int) -> int | None:
        """The cell of the token that the figure is about, if it is drawn."""
        if self.chosen is None or self.chosen not in self.places:
            return None
        return list(self.places).index(self.chosen) // math.ceil(len(self.tokens) / cells)

    def labels(self, cells: int, room: float) -> tuple[list[int], list[str]]:
        """Which cells are labelled if each has ``room`` inches, and with what; beside left-out ones also positions."""
        step = max(1, math.ceil(self.size(room) * _PITCH / room - 1e-9))
        shared = math.ceil(len(self.tokens) / cells)
        at = list(range(0, cells, step))
        words = [shortened(label(self.tokens[cell * shared])) for cell in at]
        if step > 1 or shared > 1:
            words = [f"{word}  {self.places[cell * shared]}" for word, cell in zip(words, at, strict=True)]
        return at, words


@dataclass(frozen=True)
class Panel:
    """One head's map."""

    layer: int
    head: int
    colour: str
    weights: np.ndarray
    """(R, C)."""


def tokens_of_cells(layer: int, heads: Sequence[int], queries: Side, keys: Side, look: Look) -> tuple[int, int]:
    """How many queries and keys share a cell, so that no cell is smaller than a pixel.

    Raises:
        ValueError: the size asked for leaves no room.
    """
    limit, lengths = LARGEST, (len(queries.tokens), len(keys.tokens))
    titles = [_name(layer, head) for head in heads]
    letters = _letters(queries, keys, titles, [], look)
    while True:
        high, wide = (math.ceil(length / limit) for length in lengths)
        shape = [math.ceil(length / shared) for length, shared in zip(lengths, (high, wide), strict=True)]
        _, cell = _Room(letters, queries, keys, titles, [], look).arrangement(len(heads), *shape)
        if cell * DPI >= 1 or max(shape) == 1:
            return high, wide
        limit = max(1, limit * 3 // 4)


def _name(layer: int, head: int) -> str:
    return f"layer {layer} head {head}"


def _letters(queries: Side, keys: Side, titles: Sequence[str], said: Sequence[str], look: Look) -> Letters:
    tokens = {shortened(label(token)) for side in (queries, keys) for token in side.tokens}
    return Letters([*tokens, *titles, *said, queries.name, keys.name, look.title or "", "0123456789.e+-"])


def draw_maps(panels: Sequence[Panel], queries: Side, keys: Side, said: Sequence[str], look: Look) -> AttentionFigure:
    """Maps side by side, on one scale."""
    rows, columns = panels[0].weights.shape
    titles = [_name(panel.layer, panel.head) for panel in panels]
    letters = _letters(queries, keys, titles, said, look)
    room = _Room(letters, queries, keys, titles, said, look)
    abreast, cell = room.arrangement(len(panels), rows, columns)
    sheet = Sheet(letters, look, room.width, room.height)
    peak = max((float(panel.weights.max()) for panel in panels if panel.weights.size), default=0.0)
    norm, ramp = norm_of(look.scale, peak), look.theme.ramp()
    wide, high = cell * columns, cell * rows
    for number, (panel, name) in enumerate(zip(panels, titles, strict=True)):
        down, across = divmod(number, abreast)
        x, y = room.left + across * (room.panel + _GAP), room.top + down * (high + room.heading + _GAP / 2)
        axes = sheet.axes_at(x, y, wide, high)
        image = axes.imshow(panel.weights, cmap=ramp, norm=norm, interpolation="nearest", aspect="auto",
                            gid=f"layer-{panel.layer}-head-{panel.head}")  # fmt: skip
        sheet.write(x, y - LABEL * POINT * 0.5, name, colour=panel.colour)
        below = number + abreast >= len(panels)
        _dress(axes, sheet, queries if across == 0 else None, keys if below else None, cell, (rows, columns))
        if number == 0:
            _bar(
                sheet,
                image,
                look.scale,
                peak or 1.0,
                room.left + room.abreast_width + _GAP,
                y,
                max(_LOWEST, min(high, 1.6)),
            )
    middle = room.top + (room.bottom - room.top) / 2
    sheet.write_turned(EDGE + LABEL * POINT * 0.5, middle, queries.name)
    at = room.bottom + room.key_labels + LABEL * POINT * 1.2
    sheet.write(room.left + room.abreast_width / 2, at, keys.name, colour=look.theme.quiet, align="center")
    for number, words in enumerate(room.caption):
        here = at + 0.06 + (number + 1) * SMALL * POINT * _LINE
        sheet.write(EDGE, here, words, size=SMALL, colour=look.theme.quiet)
    sheet.figure.notes = (*said, *letters.notes)
    return sheet.figure


class _Room:
    """Where everything stands, in inches."""

    def __init__(
        self, letters: Letters, queries: Side, keys: Side, titles: Sequence[str], said: Sequence[str], look: Look
    ) -> None:
        self._letters, self._queries, self._keys, self._said = letters, queries, keys, said
        self._asked = (look.width, look.height)
        self._names = max(letters.width(name, LABEL) for name in titles)
        self.heading = LABEL * POINT * 2
        self.top = EDGE + self.heading + title_room(look)

    def arrangement(self, panels: int, rows: int, columns: int) -> tuple[int, float]:
        """How many panels stand abreast, and inches of a cell's side; sets every other place.

        Raises:
            ValueError: the size asked for leaves no room.
        """
        fits = [self._fit(panels, abreast, rows, columns) for abreast in range(1, min(panels, _ABREAST) + 1)]
        largest = max(cell for cell, _ in fits)
        if largest <= 0:
            raise ValueError(
                f"size={self._asked} leaves no room for {panels} maps beside their tokens: make it larger, or choose "
                "fewer heads."
            )
        # side by side they are compared more easily, even if they are somewhat smaller
        cell, abreast = max((fit for fit in fits if fit[0] >= _WORTH * largest), key=lambda fit: fit[1])
        self._place(panels, abreast, rows, columns, cell)
        return abreast, cell

    def _longest(self, side: Side, cells: int, cell: float) -> float:
        _, words = side.labels(cells, max(cell, 1e-3))
        return max(self._letters.width(word, side.size(max(cell, 1e-3))) for word in words) + 0.06

    def _fit(self, panels: int, abreast: int, rows: int, columns: int) -> tuple[float, int]:
        """The largest cell with so many abreast; what labels take depends on it, so it is found in two steps."""
        cell, down = 0.01, math.ceil(panels / abreast)
        for _ in range(2):
            left = EDGE + LABEL * POINT * 1.6 + self._longest(self._queries, rows, cell)
            wide = (self._asked[0] or WIDTH) - left - _BAR_ROOM - _GAP - (abreast - 1) * _GAP
            if abreast > 1 and wide < abreast * self._names:
                return 0.0, abreast
            under = self._longest(self._keys, columns, cell) + LABEL * POINT * 2 + SMALL * POINT * _LINE * 3
            high = (self._asked[1] or _TALLEST) - self.top - under - (down - 1) * (self.heading + _GAP / 2)
            cell = min(_LARGEST_CELL, wide / (abreast * columns), high / (down * rows))
            if cell <= 0:
                break
        return cell, abreast

    def _place(self, panels: int, abreast: int, rows: int, columns: int, cell: float) -> None:
        down = math.ceil(panels / abreast)
        self.left = EDGE + LABEL * POINT * 1.6 + self._longest(self._queries, rows, cell)
        # a name may be wider than its map
        self.panel = max(cell * columns, self._names)
        self.abreast_width = (abreast - 1) * (self.panel + _GAP) + cell * columns
        self.bottom = self.top + max(_LOWEST, down * cell * rows) + (down - 1) * (self.heading + _GAP / 2)
        self.key_labels = self._longest(self._keys, columns, cell)
        self.width = self._asked[0] or self.left + max(self.abreast_width, self._names) + _GAP + _BAR_ROOM
        self.caption = caption_lines(self._letters, self._said, self.width - 2 * EDGE)
        below = self.key_labels + LABEL * POINT * 1.6 + 0.1 + len(self.caption) * SMALL * POINT * _LINE
        self.height = self._asked[1] or self.bottom + below


def _dress(
    axes: Axes, sheet: Sheet, queries: Side | None, keys: Side | None, cell: float, shape: Sequence[int]
) -> None:
    """Tokens along a map's axes, where they are to be written."""
    for spine in axes.spines.values():
        spine.set(color=sheet.theme.rule, linewidth=0.5)
    axes.tick_params(length=2, width=0.4, pad=1.5, color=sheet.theme.quiet)
    axes.set(xticks=[], yticks=[])
    for side, cells, axis, angle in ((queries, shape[0], axes.yaxis, 0.0), (keys, shape[1], axes.xaxis, 90.0)):
        if side is None:
            continue
        at, words = side.labels(cells, cell)
        words = [sheet.letters.drawn(word) for word in words]
        options: dict[str, Any] = {**sheet.letters.options(side.size(cell)), "rotation": angle}
        axis.set_ticks(at, labels=words, **options)
        # beside a chosen token the others are quiet
        chosen = side.chosen_cell(cells)
        for text, place in zip(axis.get_ticklabels(), at, strict=True):
            text.set_color(sheet.theme.ink if chosen not in at or chosen == place else sheet.theme.quiet)


def _bar(sheet: Sheet, image: AxesImage, scale: str, peak: float, x: float, y: float, high: float) -> None:
    """The scale of all maps, with a few numbers."""
    axes = sheet.axes_at(x, y, _BAR, high)
    bar = sheet.figure.colorbar(image, cax=axes)
    if scale == "log":
        ticks = [peak / 10.0**decade for decade in range(DECADES + 1)]
    else:
        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(0.0, peak) if 0.0 <= tick <= peak]
    options = {key: value for key, value in sheet.letters.options(LABEL).items() if key != "parse_math"}
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], color=sheet.theme.ink, **options)
    bar.minorticks_off()
    bar.outline.set(edgecolor=sheet.theme.rule, linewidth=0.5)
    axes.tick_params(length=2, width=0.4, pad=1.5, color=sheet.theme.quiet)
