"""A token's attention as coloured text and small tables, for people without a browser.

Everything here returns what rich can print; nothing is printed. Tokens are data: they are never read as markup, and
what would move the cursor is written as an escape.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from multihead.errors import MultiheadError, RecordingError, SourceError
from multihead.front.opening import asking_text
from multihead.recording import Link, Recording
from multihead.recording.words import cleaned, is_mark, shown, words_of
from multihead.view.heads import head_kinds
from multihead.view.opening import telling_link

__all__ = ["bar", "links_table", "shaded", "summary"]

Direction = Literal["from", "to"]

_DIRECTIONS: tuple[Direction, ...] = ("from", "to")
_LINKS = 400
_BAR = 10
_NAMED = 0.05
_FAINTEST = 0.01
_SHADES = ("", "on color(153) black", "on color(75) black", "on color(32) white", "on color(25) white")
_BOUNDS = (0.02, 0.1, 0.3, 0.6)
_TOKEN_WIDTH = 24
_LONG = 160
_AROUND = 8
_GAP = "[...]"


def summary(
    recording: Recording,
    token: str | int,
    *,
    count: int = 8,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    item: int = 0,
    marks: bool = False,
    plain: bool = False,
) -> RenderableType:
    """What a token looks at, what looks at it, and the text as the head sees it that tells most.

    Args:
        recording: with q, k and lse.
        token: as for :meth:`Recording.positions`; of several, all count in the tables and the first in the text.
        count: rows of each table.
        layers: by ``index``; None: all.
        heads: the model's own numbers; None: all.
        item: the sequence of the batch.
        marks: list links to and from special tokens and punctuation too; they are many and say little.
        plain: write bars in ASCII.

    Raises:
        SourceError: the token is not there.
        RecordingError: a layer or head is not there, or weights cannot be recomputed.
    """
    found: dict[Direction, list[Link]] = {}
    failures: list[MultiheadError] = []
    for direction in _DIRECTIONS:
        try:
            found[direction] = recording.top(
                token, count=_LINKS, layers=layers, heads=heads, item=item, direction=direction
            )
        except (SourceError, RecordingError) as error:
            # a token of the source asks nobody, and one whose query was not recorded can still be looked at
            failures.append(error)
    if not found:
        raise failures[0]
    parts: list[RenderableType] = []
    known = head_kinds(recording, item)
    for direction, links in found.items():
        wanted = [link for link in links if marks or not is_mark(_other_end(link, direction)[0])][:count]
        strong = [link for link in wanted if link.weight >= _FAINTEST] or wanted[:1]
        table = links_table(strong, direction=direction, kinds=known, plain=plain)
        parts += [_heading(recording, token, direction, item), table, Text()]
    told = telling_link(found.get("from", []), recording)
    if told is not None:
        parts += [*shaded(recording, told, item=item), Text()]
    if not marks:
        parts += [Text("Links to and from special tokens and punctuation are left out.", style="dim"), Text()]
    return Group(*parts[:-1])


def _other_end(link: Link, direction: Direction) -> tuple[str, int, int]:
    """The token at the other end of a link, its position, and the position at this end."""
    if direction == "from":
        return link.key_token, link.key, link.query
    return link.query_token, link.query, link.key


def _heading(recording: Recording, token: str | int, direction: Direction, item: int) -> Text:
    tokens = recording.texts.get(asking_text(recording), [[]] * (item + 1))[item]
    name = tokens[token] if isinstance(token, int) and token < len(tokens) else str(token)
    heads = sum(len(layer.heads) for layer in recording.layers)
    heading = Text(_label(name), style="bold")
    heading.append(" looks at" if direction == "from" else " is looked at by", style="not bold")
    layers = len(recording.layers)
    heading.append(f"   the strongest over {_counted(heads, 'head')} in {_counted(layers, 'layer')}", style="dim")
    return heading


def links_table(
    links: Sequence[Link],
    *,
    direction: Direction = "from",
    kinds: Mapping[tuple[int, int], str] | None = None,
    plain: bool = False,
) -> Table:
    """Links as a table: layer, head, the token at the other end and its position, weight, a bar and the head's kind.

    Of a token that occurs several times also which of them. Kinds are by layer and head; None: there is no such column.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    ends = [_other_end(link, direction) for link in links]
    several = len({own for _, _, own in ends}) > 1
    numeric = ["layer", "head", *(["from" if direction == "from" else "to"] if several else [])]
    for name in (*numeric, "token", "at", "weight", "", *([] if kinds is None else ["kind"])):
        justify = "left" if name in ("token", "", "kind") else "right"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", max_width=_TOKEN_WIDTH)
    for link, (token, place, own) in zip(links, ends, strict=True):
        blocks = Text(bar(link.weight, plain=plain), style="color(32)")
        owns = [str(own)] if several else []
        kind = [] if kinds is None else [Text(kinds.get((link.layer, link.head), ""), style="dim")]
        weight = f"{link.weight:.3f}"
        table.add_row(str(link.layer), str(link.head), *owns, Text(_label(token)), str(place), weight, blocks, *kind)
    return table


def bar(weight: float, *, width: int = _BAR, plain: bool = False) -> str:
    """A weight from 0 to 1 as a bar.

    >>> bar(0.5), bar(0.52, plain=True)
    ('█████', '#####')
    """
    eighths = round(max(0.0, min(1.0, weight)) * width * 8)
    if plain:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def shaded(recording: Recording, link: Link, *, item: int = 0) -> list[RenderableType]:
    """The text that a link's query sees, each token shaded by its weight; from a twentieth on also in numbers."""
    layer = recording.layer(link.layer)
    weights = recording.rows(link.layer, [link.query], heads=[link.head], item=item)[0, 0].tolist()
    known = recording.texts.get(layer.key_text)
    tokens = [str(place) for place in range(len(weights))] if known is None else list(known[item])[: len(weights)]
    heading = Text.assemble(
        ("what ", "dim"), (_label(link.query_token), "bold"), (f" sees in layer {link.layer} head {link.head}", "dim")
    )
    words = words_of(tokens)
    line = Text()
    for word, kept in zip(words, _worth_showing(words, weights), strict=True):
        if not kept:
            if not line.plain.endswith(_GAP):
                line.append(f" {_GAP}" if line.plain else _GAP, style="dim")
            continue
        if line.plain:
            line.append(" ")
        for place in word:
            style = _SHADES[sum(weights[place] >= bound for bound in _BOUNDS)]
            line.append(_label(tokens[place]), style=style)
            if weights[place] >= _NAMED:
                line.append(f"({weights[place]:.0%})", style="bold")
    return [heading, line]


def _worth_showing(words: Sequence[Sequence[int]], weights: Sequence[float]) -> list[bool]:
    """All words of a short text; of a long one those around the weights that are named."""
    if len(words) <= _LONG:
        return [True] * len(words)
    strong = [number for number, word in enumerate(words) if any(weights[place] >= _NAMED for place in word)]
    strong = strong or [max(range(len(words)), key=lambda number: max(weights[place] for place in words[number]))]
    near = {number + step for number in strong for step in range(-_AROUND, _AROUND + 1)}
    return [number in near for number in range(len(words))]


def _label(token: str) -> str:
    return shown(cleaned(token)) or "∅"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
