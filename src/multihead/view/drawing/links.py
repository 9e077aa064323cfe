"""Two columns of tokens with lines between them, the stronger the weight the fuller the line."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb

from multihead.view.drawing.letters import Letters, label, shortened
from multihead.view.drawing.maps import Side
from multihead.view.drawing.paper import (
    EDGE,
    LABEL,
    POINT,
    SMALL,
    AttentionFigure,
    Look,
    Sheet,
    caption_lines,
    norm_of,
    strengths,
    title_room,
)

_SPAN = 1.5
_LINE = LABEL * POINT * 1.6
_WIDE, _NARROW = 1.4, 0.8
_SPREAD = 0.6
"""The part of a token's line over which the lines of several heads are spread."""

_UNSEEN = 1 / 512
_SCALES = {
    "linear": "opacity is weight",
    "sqrt": "opacity is its square root",
    "log": "opacity is its logarithm, over 4 decades",
}


@dataclass(frozen=True)
class Strands:
    """One head's weights between the two columns."""

    layer: int
    head: int
    colour: str
    dashed: bool
    weights: np.ndarray
    """(queries, keys)."""


def draw_links(strands: Sequence[Strands], queries: Side, keys: Side, look: Look) -> AttentionFigure:
    """Queries on the left, keys on the right; the fullest line is the largest weight of those drawn."""
    peak = max((float(one.weights.max()) for one in strands if one.weights.size), default=0.0)
    said = f"The fullest line is {peak:.2g}; {_SCALES[look.scale]}."
    columns = [[shortened(label(token)) for token in side.tokens] for side in (queries, keys)]
    names = [f"head {one.head}" for one in strands]
    heading = f"layer {strands[0].layer}"
    letters = Letters([*columns[0], *columns[1], *names, heading, said, queries.name, keys.name, look.title or "", "…"])
    left, right = (
        max(letters.width(word, LABEL) for word in (side.name, *words))
        for side, words in zip((queries, keys), columns, strict=True)
    )
    widest = 2 * EDGE + left + right + 0.1
    across = look.width or max(widest + _SPAN, 2.6)
    if across - widest < 0.3:
        raise ValueError(f"size={look.width} is too narrow for these tokens: at least {widest + 0.3:.1f} inches wide.")
    legend = _placed(letters, [heading, *names], across - 2 * EDGE)
    top = EDGE + title_room(look)
    start = top + (legend[-1][2] + 1) * _LINE + 1.5 * _LINE
    rows = max(map(len, columns))
    caption = caption_lines(letters, [said], across - 2 * EDGE)
    needed = start + rows * _LINE + 0.08 + len(caption) * SMALL * POINT * 1.35 + EDGE
    if look.height is not None and look.height < needed:
        raise ValueError(
            f"size=({look.width}, {look.height}) is too low for {rows} tokens: at least {needed:.1f} inches high."
        )
    sheet = Sheet(letters, look, across, look.height or needed)
    for (words, x, row), colour in zip(legend, [look.theme.quiet, *(one.colour for one in strands)], strict=True):
        sheet.write(EDGE + x, top + (row + 0.7) * _LINE, words, colour=colour)
    ends = EDGE + left, across - EDGE - right
    for x, align, side, words in zip(ends, ("right", "left"), (queries, keys), columns, strict=True):
        sheet.write(x, start - 0.5 * _LINE, side.name, colour=look.theme.quiet, align=align)
        for row, word in enumerate(words):
            rest = side.chosen is not None and side.places[row] != side.chosen
            colour = look.theme.quiet if rest else look.theme.ink
            sheet.write(x, start + (row + 0.68) * _LINE, word, colour=colour, align=align)
    norm = norm_of(look.scale, peak)
    pitch = _SPREAD * _LINE / len(strands)
    for number, one in enumerate(strands):
        middle = start + (0.45 - _SPREAD / 2) * _LINE + (number + 0.5) * pitch
        lines = _lines(one, norm, (ends[0] + 0.05, ends[1] - 0.05), middle)
        lines.set_linewidth(max(_NARROW, min(_WIDE, pitch / POINT)))
        lines.set_gid(f"layer-{one.layer}-head-{one.head}")
        sheet.axes.add_collection(lines, autolim=False)
    for number, words in enumerate(caption):
        y = start + rows * _LINE + 0.08 + (number + 0.75) * SMALL * POINT * 1.35
        sheet.write(EDGE, y, words, size=SMALL, colour=look.theme.quiet)
    sheet.figure.notes = letters.notes
    return sheet.figure


def _lines(one: Strands, norm: Normalize, ends: tuple[float, float], middle: float) -> LineCollection:
    """One head's lines, the faintest first; what nobody could see is left out."""
    shares = strengths(norm, one.weights)
    query, key = np.nonzero(shares >= _UNSEEN)
    order = np.argsort(shares[query, key], kind="stable")
    query, key = query[order], key[order]
    from_ends = np.stack([np.full(len(query), ends[0]), middle + query * _LINE], axis=-1)
    to_ends = np.stack([np.full(len(key), ends[1]), middle + key * _LINE], axis=-1)
    colours = np.column_stack([np.tile(to_rgb(one.colour), (len(query), 1)), shares[query, key]])
    dashes = (0, (3, 1.5)) if one.dashed else "solid"
    return LineCollection(list(np.stack([from_ends, to_ends], axis=1)), colors=colours, linestyles=[dashes])


def _placed(letters: Letters, names: Sequence[str], width: float) -> list[tuple[str, float, int]]:
    """Names one after the other in lines of a width: each with its place and line."""
    placed, x, row = [], 0.0, 0
    for name in names:
        wide = letters.width(name, LABEL)
        if x and x + wide > width:
            x, row = 0.0, row + 1
        placed.append((name, x, row))
        x += wide + 0.12
    return placed
