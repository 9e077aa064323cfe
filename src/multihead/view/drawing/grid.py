"""Every layer and head as a small map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import LineCollection

from multihead.view.drawing.letters import Letters
from multihead.view.drawing.paper import (
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

_LARGEST_CELL = 0.5
_MARGIN = 0.04
_LINE = 1.35

_SCALES = {"linear": "a linear scale", "sqrt": "a square root scale", "log": "a logarithmic scale over 4 decades"}


@dataclass(frozen=True)
class Row:
    """One layer."""

    index: int
    kind: str
    """Between which texts, where there are several."""
    heads: tuple[int, ...]
    means: np.ndarray
    """(heads, R, C): mean weights."""


def draw_heads(rows: Sequence[Row], look: Look) -> AttentionFigure:
    """Rows layers, columns heads, by the model's numbers; each map from 0 to its own largest mean weight."""
    said = [f"Queries down, keys across; each map up to its own largest weight, on {_SCALES[look.scale]}."]
    columns = sorted({head for row in rows for head in row.heads})
    letters = Letters([*said, *(row.kind for row in rows), look.title or "", "0123456789 layer head"])
    line = LABEL * POINT * _LINE
    left = EDGE + 2 * line + max(letters.width(str(row.index), LABEL) for row in rows)
    bands = [place for place, row in enumerate(rows) if row.kind and (place == 0 or row.kind != rows[place - 1].kind)]
    top = EDGE + 2 * line + title_room(look)
    cell = min(_LARGEST_CELL, ((look.width or WIDTH) - left - EDGE) / len(columns))
    width = look.width or max(left + cell * len(columns) + EDGE, 2.5)
    caption = caption_lines(letters, said, width - left - EDGE)
    below = len(caption) * SMALL * POINT * _LINE + 0.12
    fixed = top + len(bands) * line * 1.3 + below + EDGE
    if look.height is not None:
        cell = min(cell, (look.height - fixed) / len(rows))
        if cell <= 0:
            raise ValueError(
                f"size=({look.width}, {look.height}) is too low for {len(rows)} layers: "
                f"at least {fixed + 1:.1f} inches high."
            )
    sheet = Sheet(letters, look, width, look.height or fixed + cell * len(rows))
    sheet.write(left, top - line * 1.1, "head", colour=look.theme.quiet)
    step = _step(max(letters.width(str(head), LABEL) for head in columns) + 0.03, cell)
    for column, head in enumerate(columns[::step]):
        sheet.write(left + cell * (column * step + 0.5), top - line * 0.25, str(head), align="center")
    y = top
    frames: list[np.ndarray] = []
    ramp = look.theme.ramp()
    step = _step(line, cell)
    for place, row in enumerate(rows):
        if place in bands:
            y += line * 1.3
            sheet.write(left, y - line * 0.35, row.kind, colour=look.theme.quiet)
        if place % step == 0:
            sheet.write(left - 0.06, y + cell / 2 + LABEL * POINT * 0.35, str(row.index), align="right")
        for head, recorded in zip(row.heads, row.means, strict=True):
            x = left + cell * columns.index(head)
            box = (x + cell * _MARGIN, x + cell * (1 - _MARGIN), y + cell * (1 - _MARGIN), y + cell * _MARGIN)
            # a cell smaller than a pixel would not be seen
            means = _shrunk(recorded, max(1, int(cell * (1 - 2 * _MARGIN) * DPI)))
            peak = float(means.max())
            sheet.axes.imshow(
                means, extent=box, cmap=ramp, norm=norm_of(look.scale, peak), interpolation="nearest", aspect="auto",
                gid=f"layer-{row.index}-head-{head}",
            )  # fmt: skip
            frames.append(_outline(*box))
        y += cell
    sheet.axes.set(xlim=(0, sheet.width), ylim=(sheet.height, 0))
    sheet.axes.add_collection(LineCollection(frames, colors=look.theme.rule, linewidths=0.5), autolim=False)
    sheet.write_turned(EDGE + line / 2, (top + y) / 2, "layer")
    for number, words in enumerate(caption):
        at = y + 0.12 + (number + 0.75) * SMALL * POINT * _LINE
        sheet.write(left, at, words, size=SMALL, colour=look.theme.quiet)
    sheet.figure.notes = letters.notes
    return sheet.figure


def _shrunk(means: np.ndarray, limit: int) -> np.ndarray:
    """The mean of neighbouring cells, at most ``limit`` a side."""
    for axis, size in enumerate(means.shape):
        starts = np.arange(0, size, math.ceil(size / limit))
        counts = np.diff(starts, append=size)
        means = np.add.reduceat(means, starts, axis=axis) / np.expand_dims(counts, 1 - axis)
    return means


def _step(needed: float, room: float) -> int:
    """Every how many labels are written so that none touches the next."""
    return max(1, math.ceil(needed / room))


def _outline(left: float, right: float, bottom: float, top: float) -> np.ndarray:
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
