"""Running text, each token shaded by a weight: lines are broken between words, and read the way their script does."""

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.patches import Rectangle

from multihead.recording.words import is_mark, words_of
from multihead.view.drawing.letters import Letters, is_right_to_left, label, shortened
from multihead.view.drawing.maps import Side
from multihead.view.drawing.paper import (
    EDGE,
    LABEL,
    POINT,
    SMALL,
    TEXT,
    TEXT_TINT,
    WIDTH,
    AttentionFigure,
    Look,
    Sheet,
    mixed,
    norm_of,
    strengths,
    title_room,
)

FAINTEST = 0.01
"""Weights below have no shade, as on the page."""

_LONGEST = 60

_PAD = 0.016
_JOINED = 0.003
_SPACE = 0.024
_LINE = TEXT * POINT * 1.75
_CLOSING = frozenset(",.;:!?)]}%»”’…、。，！？；：」』）】》،؛؟")
_STEPS = (0.01, 0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Shades:
    """One head's weights of the tokens."""

    head: int
    colour: str
    weights: np.ndarray


@dataclass(frozen=True)
class Spot:
    """Where a token stands."""

    token: int
    line: int
    left: float
    width: float
    pad: float
    """From its left side to its first letter."""


def tints(scale: str, weights: np.ndarray) -> np.ndarray:
    """The share of a head's colour behind each token: TEXT_TINT at weight 1, none below FAINTEST."""
    shares = strengths(norm_of(scale, 1.0), weights)
    # the page's own: what is seen at all is seen clearly
    shares = 0.15 + 0.85 * shares if scale == "sqrt" else shares
    return TEXT_TINT * np.where(weights < FAINTEST, 0.0, shares) if scale != "log" else TEXT_TINT * shares


def draw_text(
    shades: Sequence[Shades], side: Side, framed: int | None, layer: int, heading: str, look: Look
) -> AttentionFigure:
    """The text once for each head; ``framed`` is the place of the token it is about, if it is in this text."""
    tokens, places = side.tokens, side.places
    words = [shortened(label(token), _LONGEST) for token in tokens]
    names = [f"head {one.head}" for one in shades]
    letters = Letters([*words, *names, heading, look.title or "", "weight 0123456789.…"])
    left = EDGE + max(letters.width(name, LABEL) for name in names) + 0.12
    across = look.width or WIDTH
    spots = flow(tokens, words, letters, across - left - EDGE)
    lines = 1 + max(spot.line for spot in spots)
    top = EDGE + title_room(look) + LABEL * POINT * 2.2
    paragraph = lines * _LINE + 0.08
    needed = top + len(shades) * paragraph + 0.32
    if look.height is not None and look.height < needed:
        raise ValueError(
            f"size=({look.width}, {look.height}) is too low: at this width the text takes {needed:.1f} "
            "inches. Make it higher, or choose fewer tokens or heads."
        )
    sheet = Sheet(letters, look, across, look.height or needed)
    sheet.write(left, top - LABEL * POINT, heading, colour=look.theme.quiet)
    for number, (one, name) in enumerate(zip(shades, names, strict=True)):
        y = top + number * paragraph
        sheet.write(left - 0.1, y + _LINE * 0.68, name, colour=one.colour, align="right")
        for spot, share in zip(spots, tints(look.scale, one.weights)[[spot.token for spot in spots]], strict=True):
            x, base = left + spot.left, y + spot.line * _LINE
            ground = mixed(one.colour, look.theme.paper, float(share))
            box = (x, base + _LINE * 0.07), spot.width, _LINE * 0.86
            frame = look.theme.ink if places[spot.token] == framed else "none"
            sheet.axes.add_patch(
                Rectangle(*box, facecolor=ground, edgecolor=frame, linewidth=0.7,
                          gid=f"layer-{layer}-head-{one.head}-token-{places[spot.token]}")
            )  # fmt: skip
            sheet.write(x + spot.pad, base + _LINE * 0.68, words[spot.token], size=TEXT)
    _legend(sheet, left, top + len(shades) * paragraph + 0.06, look.scale, shades)
    sheet.figure.notes = letters.notes
    return sheet.figure


def _legend(sheet: Sheet, x: float, y: float, scale: str, shades: Sequence[Shades]) -> None:
    """What a shade says, in numbers."""
    colour = shades[0].colour if len(shades) == 1 else sheet.theme.map
    sheet.write(x, y + 0.11, "weight", size=SMALL, colour=sheet.theme.quiet)
    x += sheet.letters.width("weight", SMALL) + 0.06
    for step, share in zip(_STEPS, tints(scale, np.array(_STEPS)), strict=True):
        words = f"{step:g}"
        wide = sheet.letters.width(words, SMALL) + 0.1
        ground = mixed(colour, sheet.theme.paper, float(share))
        sheet.axes.add_patch(Rectangle((x, y), wide, 0.15, facecolor=ground, edgecolor="none"))
        sheet.write(x + wide / 2, y + 0.11, words, size=SMALL, align="center")
        x += wide + 0.03


def flow(tokens: Sequence[str], words: Sequence[str], letters: Letters, room: float) -> list[Spot]:
    """Tokens in lines of at most ``room`` inches; a text that begins from right to left stands on the right.

    Pieces of a word stay together where a line has room for the word; a token with a line break in it ends its line.
    """
    gaps = _gaps(tokens)
    # within a word hardly anything stands between the letters of two pieces
    pads = [_PAD if gap == _SPACE else _JOINED for gap in (_SPACE, *gaps[1:], _SPACE)]
    widths = [letters.width(word, TEXT) + pads[token] + pads[token + 1] for token, word in enumerate(words)]
    lines: list[list[int]] = [[]]
    used = 0.0
    for group in _unbroken(tokens):
        whole = sum(widths[token] + gaps[token] for token in group)
        parts = [group] if whole <= room else [[token] for token in group]
        for part in parts:
            wide = sum(widths[token] + gaps[token] for token in part)
            first = gaps[part[0]]
            if lines[-1] and used + wide > room:
                lines.append([])
                used = 0.0
            used += wide if lines[-1] else wide - first
            lines[-1] += part
        if "\n" in tokens[group[-1]] or "Ċ" in tokens[group[-1]]:
            lines.append([])
            used = 0.0
    # [CLS] is no English word before an Arabic text
    kinds = ["" if is_mark(token) else _direction(word) for token, word in zip(tokens, words, strict=True)]
    from_right = next((kind for kind in kinds if kind), "L") == "R"
    spots = []
    for number, line in enumerate(line for line in lines if line):
        order = _visual([kinds[token] for token in line], from_right=from_right)
        row, x = [], 0.0
        for before, place in zip([None, *order[:-1]], order, strict=True):
            if before is not None:
                x += gaps[line[max(before, place)]] if abs(before - place) == 1 else _SPACE
            row.append((line[place], x))
            x += widths[line[place]]
        start = room - x if from_right else 0.0
        spots += [Spot(token, number, start + x, widths[token], pads[token + from_right]) for token, x in row]
    return spots


def _unbroken(tokens: Sequence[str]) -> list[list[int]]:
    """Words as groups of tokens. Chinese and Japanese break between any two; closing marks go with a word."""
    groups: list[list[int]] = []
    for word in words_of(tokens):
        for token in word:
            here = label(tokens[token])
            goes_on = token != word[0] and not _is_wide(here) and not _is_wide(label(tokens[token - 1]))
            closes = token == word[0] and here in _CLOSING
            if groups and (goes_on or closes):
                groups[-1].append(token)
            else:
                groups.append([token])
    return groups


def _gaps(tokens: Sequence[str]) -> list[float]:
    """The space before each token: none within words, between wide letters, and before closing marks."""
    gaps = [2 * _JOINED] * len(tokens)
    marked = any(token.startswith(("Ġ", "▁", " ")) for token in tokens)
    for word in words_of(tokens):
        token = word[0]
        here, before = label(tokens[token]), label(tokens[token - 1]) if token else ""
        if marked:
            apart = tokens[token].startswith(("Ġ", "▁", " "))
        else:
            apart = here not in _CLOSING and not (_is_wide(here) and _is_wide(before))
        if apart:
            gaps[token] = _SPACE
    return gaps


def _is_wide(word: str) -> bool:
    """Whether it is written without spaces around: Chinese and Japanese; Korean has spaces."""
    first = word[:1]
    wide = bool(first) and unicodedata.east_asian_width(first) in "WF"
    return wide and not unicodedata.name(first, "").startswith("HANGUL")


def _direction(word: str) -> str:
    """``R`` or ``L`` by the first letter that has a direction, numbers ``L``; else empty: it follows its neighbours."""
    for character in word:
        if is_right_to_left(character):
            return "R"
        if unicodedata.bidirectional(character) in ("L", "EN", "AN"):
            return "L"
    return ""


def _visual(kinds: Sequence[str], *, from_right: bool) -> list[int]:
    """A line's tokens as they stand from left to right: the bidirectional algorithm (UAX #9) for two levels."""
    base = "R" if from_right else "L"
    resolved = list(kinds)
    for place, kind in enumerate(kinds):
        if not kind:
            before = next((one for one in reversed(kinds[:place]) if one), base)
            after = next((one for one in kinds[place:] if one), base)
            resolved[place] = before if before == after else base
    runs = [(kind, list(run)) for kind, run in itertools.groupby(range(len(kinds)), key=resolved.__getitem__)]
    ordered = [run if kind == "L" else run[::-1] for kind, run in runs]
    return list(itertools.chain.from_iterable(ordered[::-1] if from_right else ordered))
