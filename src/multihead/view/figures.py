"""Figures for papers: a recording as a matplotlib figure, saved as PDF, SVG or PNG. ``docs/figures.md`` shows them all.

>>> import torch
>>> import multihead as mh
>>> model = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
>>> x = torch.rand(1, 5, 16)
>>> with mh.observe(model) as seen:
...     _ = model(x, x, x, need_weights=False)
>>> recording = seen.recording(tokens=["the", "model", "looks", "at", "words"])
>>> drawn = recording.figure("map", layer=0, heads=[1, 3])
>>> {image.get_gid(): image.get_array().shape for axes in drawn.axes for image in axes.images if image.get_gid()}
{'layer-0-head-1': (5, 5), 'layer-0-head-3': (5, 5)}
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from multihead.front.document import texts_of
from multihead.recording import Recording
from multihead.recording.query import token_at, weights
from multihead.recording.words import cleaned, shown
from multihead.view.asked import (
    Asked,
    Found,
    check,
    count_of,
    finite,
    layers_and_heads,
    look_for,
    one_of,
    pooled,
)
from multihead.view.entries import overview

if TYPE_CHECKING:
    from multihead.view.drawing.maps import Side
    from multihead.view.drawing.paper import AttentionFigure, Look

__all__ = ["figure"]

LONGEST_TEXT = 2000
"""Tokens that running text is drawn for, all heads together."""

LONGEST_COLUMN = 100
"""Tokens in a column of links."""

_KINDS = ("heads", "map", "text", "links")
_SCALES = ("linear", "sqrt", "log")


def figure(
    recording: Recording,
    kind: str | None = None,
    *,
    layer: int | None = None,
    heads: Sequence[int] | None = None,
    token: str | int | None = None,
    queries: Sequence[int] | None = None,
    keys: Sequence[int] | None = None,
    item: int = 0,
    scale: str | None = None,
    size: int | float | tuple[int | float, int | float] | None = None,
    dark: bool = False,
    title: str | None = None,
) -> "AttentionFigure":
    """Draw a recording for a paper: exact weights, the page's colours, fonts by the glyphs that the text needs.

    Args:
        recording: with q, k and lse; ``heads`` is content with recorded ``blocks``.
        kind: ``heads``, every layer and head as a small map of mean weights; ``map``, whole maps with tokens along both
            axes; ``text``, the text with each token shaded by the weight between it and ``token``; ``links``, two
            columns of tokens with lines. None: ``text`` if a token is given, ``map`` if a layer, heads, queries or keys
            are, else ``heads``.
        layer: by ``index``. None: the one that tells most about the token; for ``heads`` all.
        heads: the model's own numbers. None: the one that tells most about the token; for ``heads`` all.
        token: as for :meth:`Recording.positions`; of several the first. None: a likely one; maps and links then show
            every token alike. With it links are those of this token.
        queries: the model's own query numbers; None: all that were recorded. For ``text`` about a key: those shown.
        keys: key numbers; None: all. For ``text`` about a query: those shown.
        item: the sequence of the batch.
        scale: ``linear``, ``sqrt`` or ``log`` (four decades). None: ``sqrt`` for ``heads`` and ``text``, as on the
            page, else ``linear``. A map of heads reaches from 0 to its own largest value; maps and links of one figure
            reach from 0 to the largest weight among them; shades of text from 0 to 1.
        size: width in inches, or (width, height); None: what the figure needs, at most 6.75 inches wide.
        dark: on the page's dark ground.
        title: above the figure; None: nothing, since papers have captions.

    Returns:
        A ``matplotlib.figure.Figure``, without pyplot. Its ``savefig`` writes the same bytes each time (PNG, SVG, PDF)
        and files whole; its ``notes`` say what the figure leaves out or changes.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: an argument means nothing here, or there is no room; the message says what to write.
        SourceError: the token is not there, the recording holds no layer, or a text is empty.
        RecordingError: a layer, head or query was not recorded, nor what weights are recomputed from, or a weight is
            no number.
        TypeError: numbers are none.

    Time: O(Lq · Lk) for each map. Memory: the figure and a band of weights.
    """
    chosen = _kind(kind, token, (layer, heads, queries, keys))
    asked = Asked(layer, heads, token, queries, keys, item)
    check(recording, asked, chosen)
    scale = _scale(scale, "sqrt" if chosen in ("heads", "text") else "linear")
    width, height = _size(size)
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title={title!r} is no text.")
    try:
        from multihead.view.drawing.paper import DARK, LIGHT, Look, our_style
    except ImportError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise ImportError("figures are drawn with matplotlib: pip install 'multihead[figures]'.") from error
    look = Look(scale, width, height, DARK if dark else LIGHT, None if title is None else shown(title))
    draw = {"heads": _heads, "map": _map, "text": _text, "links": _links}[chosen]
    with our_style():
        return draw(recording, asked, look)


def _heads(recording: Recording, asked: Asked, look: "Look") -> "AttentionFigure":
    from multihead.view.drawing.grid import Row, draw_heads

    several = len({name for layer in recording.layers for name in (layer.query_text, layer.key_text)}) > 1
    rows = []
    for layer, heads in layers_and_heads(recording, asked):
        means = overview(layer, asked.item)[[layer.heads.index(head) for head in heads]]
        kind = f"{shown(layer.query_text)} → {shown(layer.key_text)}" if several else ""
        rows.append(Row(layer.index, kind, heads, finite(means, layer)))
    return draw_heads(rows, look)


def _map(recording: Recording, asked: Asked, look: "Look") -> "AttentionFigure":
    from multihead.view.drawing.maps import Panel, draw_maps, tokens_of_cells

    found = look_for(recording, asked)
    layer = found.layer
    queries, keys = _sides(recording, asked, found)
    chosen = found.queries(asked), found.keys(asked)
    cell = tokens_of_cells(layer.index, found.heads, queries, keys, look)
    panels = []
    for head in found.heads:
        colour, _ = look.theme.head(layer.heads.index(head))
        panels.append(Panel(layer.index, head, colour, pooled(layer, head, *chosen, asked.item, cell)))
    said = [f"Each cell is the largest of {cell[0]} × {cell[1]} weights."] if max(cell) > 1 else []
    return draw_maps(panels, queries, keys, said, look)


def _text(recording: Recording, asked: Asked, look: "Look") -> "AttentionFigure":
    from multihead.view.drawing.running import Shades, draw_text

    found = look_for(recording, asked)
    layer = found.layer
    queries, keys = _sides(recording, asked, found)
    own, other = ("queries", "keys") if found.asks else ("keys", "queries")
    if getattr(asked, own) is not None:
        raise ValueError(
            f"kind='text' shows the {other} of one token, so {own} choose nothing: {other}= says which tokens to show."
        )
    side = keys if found.asks else queries
    if len(side.tokens) * len(found.heads) > LONGEST_TEXT:
        raise ValueError(
            f"{len(side.tokens)} tokens for {count_of(found.heads, 'head')} are more than the {LONGEST_TEXT} that can "
            f"be read: choose some, {other}=range({max(1, LONGEST_TEXT // len(found.heads) // 2)}), or draw kind='map'."
        )
    at = [found.number] if found.asks else found.queries(asked), found.keys(asked) if found.asks else [found.number]
    rows = weights(layer, *at, heads=found.heads, item=asked.item).flatten(1).cpu().numpy()
    shades = []
    for head, row in zip(found.heads, finite(rows, layer), strict=True):
        colour, _ = look.theme.head(layer.heads.index(head))
        shades.append(Shades(head, colour, row))
    verb = "looks at" if found.asks else "is looked at by"
    heading = f"layer {layer.index}: what “{shown(cleaned(found.token))}” {verb}"
    framed = found.place if layer.query_text == layer.key_text else None
    return draw_text(shades, side, framed, layer.index, heading, look)


def _links(recording: Recording, asked: Asked, look: "Look") -> "AttentionFigure":
    from multihead.view.drawing.links import Strands, draw_links

    found = look_for(recording, asked)
    layer = found.layer
    queries, keys = _sides(recording, asked, found)
    longest = max(len(queries.tokens), len(keys.tokens))
    if longest > LONGEST_COLUMN:
        raise ValueError(
            f"{longest} tokens are more than the {LONGEST_COLUMN} whose lines can be told apart: choose some, "
            f"queries=range({LONGEST_COLUMN // 2}), keys=range({LONGEST_COLUMN // 2}), or draw kind='map'."
        )
    found_weights = weights(layer, found.queries(asked), found.keys(asked), heads=found.heads, item=asked.item)
    every = finite(found_weights.cpu().numpy(), layer)
    if asked.token is not None:
        side, axis = (queries, 1) if found.asks else (keys, 2)
        if found.place not in side.places:
            raise ValueError(
                f"token {shown(found.token)!r} is at {found.place}, which is not among the {side.name} chosen."
            )
        own = np.array(side.places) == found.place
        every = every * np.expand_dims(own, tuple({0, 1, 2} - {axis}))
    strands = []
    for head, rows in zip(found.heads, every, strict=True):
        colour, dashed = look.theme.head(layer.heads.index(head))
        strands.append(Strands(layer.index, head, colour, dashed, rows))
    return draw_links(strands, queries, keys, look)


def _sides(recording: Recording, asked: Asked, found: Found) -> "tuple[Side, Side]":
    """The tokens along queries and keys."""
    from multihead.view.drawing.maps import Side

    layer, texts = found.layer, texts_of(recording, asked.item)
    one_text = layer.query_text == layer.key_text
    asking, answering = texts[layer.query_text], texts[layer.key_text]
    places = [layer.place_of_query(query, len(asking)) for query in found.queries(asked)]
    keys = list(found.keys(asked))
    chosen = found.place if asked.token is not None else None
    names = (
        ["queries", "keys"] if one_text else [f"{shown(layer.query_text)} (queries)", f"{shown(layer.key_text)} (keys)"]
    )
    return (
        Side(names[0], places, [token_at(asking, place) for place in places], chosen if found.asks else None),
        Side(names[1], keys, [token_at(answering, key) for key in keys], None if found.asks else chosen),
    )


def _kind(kind: str | None, token: object, others: Sequence[object]) -> str:
    if kind is None:
        if token is not None:
            return "text"
        return "map" if any(other is not None for other in others) else "heads"
    return one_of("kind", kind, _KINDS)


def _scale(scale: str | None, usual: str) -> str:
    return usual if scale is None else one_of("scale", scale, _SCALES)


def _size(size: object) -> tuple[float | None, float | None]:
    """Width and height in inches, None where the figure decides."""
    if size is None:
        return None, None
    sides = size if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
    inches = [float(side) for side in sides if isinstance(side, int | float) and not isinstance(side, bool)]
    if len(inches) != len(sides) or len(inches) not in (1, 2) or not all(0.5 <= side <= 200 for side in inches):
        raise ValueError(f"size={size!r} is neither a width nor (width, height), in inches from 0.5 to 200.")
    return inches[0], inches[1] if len(inches) == 2 else None
