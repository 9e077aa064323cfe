"""Which fonts draw a text, how wide it comes out, and what is drawn for a character that no font has.

DejaVu Sans comes with matplotlib and is asked first. For what it lacks the installed fonts are searched, by their
glyphs and not by their names. One weight only: a bold face has other glyphs than the regular one.
"""

import functools
import unicodedata
from collections.abc import Iterable
from typing import Any

from matplotlib import font_manager, ft2font
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from multihead.recording.words import cleaned, shown

BASE = "DejaVu Sans"

_DPI = 720
"""Fine enough that widths are those of the outlines."""
_LONGEST = 24


def label(token: str) -> str:
    r"""A token as figures write it: without its tokenizer's marks, what cannot be seen as escapes.

    >>> label("##ments"), label(""), label("\n")
    ('ments', '∅', '\\n')
    """
    return shown(cleaned(token)) or "∅"


def shortened(text: str, longest: int = _LONGEST) -> str:
    """At most ``longest`` characters, the last an ellipsis where something was left out."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


class Letters:
    """The fonts for everything that a figure says."""

    def __init__(self, texts: Iterable[str]) -> None:
        characters = frozenset().union(*texts)
        found, absent = _fallbacks(characters - _drawn_by(BASE, characters))
        # a reader of an SVG who has none of the fonts is shown his own, not one with serifs
        self.families = [BASE, *found, "sans-serif"]
        self._stand_ins = {ord(character): f"‹{ord(character):04X}›" for character in absent}
        self._renderer = RendererAgg(1, 1, _DPI)
        self._widths: dict[tuple[str, float], float] = {}
        self.notes = tuple(_notes(characters, absent))

    def options(self, size: float) -> dict[str, Any]:
        """What every matplotlib text is given, so that its words stay words: ``$`` starts no formula."""
        return {"parse_math": False, "fontfamily": self.families, "fontsize": size}

    def drawn(self, text: str) -> str:
        """The text as it can be drawn: ``‹1F600›`` for a character that no font has."""
        return text.translate(self._stand_ins)

    def width(self, text: str, size: float) -> float:
        """Inches that a text takes at ``size`` points."""
        if (text, size) not in self._widths:
            properties = FontProperties(family=self.families, size=size)
            pixels, _, _ = self._renderer.get_text_width_height_descent(self.drawn(text), properties, ismath=False)
            self._widths[text, size] = pixels / _DPI
        return self._widths[text, size]


def is_right_to_left(character: str) -> bool:
    """Whether it belongs to Arabic, Hebrew or another script written from right to left."""
    return unicodedata.bidirectional(character) in ("R", "AL")


def _notes(characters: frozenset[str], absent: frozenset[str]) -> list[str]:
    notes = []
    if absent:
        codes = ", ".join(f"U+{ord(character):04X}" for character in sorted(absent)[:8])
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        notes.append(f"No installed font has {codes}{more}: drawn as numbers in ‹ ›.")
    if any(map(is_right_to_left, characters)) and not hasattr(ft2font, "__libraqm_version__"):
        notes.append(
            "This matplotlib draws the letters of Arabic and Hebrew unjoined and from left to right: 3.11 joins them."
        )
    return notes


def _drawn_by(family: str, characters: Iterable[str]) -> frozenset[str]:
    """Those of the characters for which a family has a glyph."""
    try:
        path = font_manager.findfont(FontProperties(family=[family]), fallback_to_default=False)
        font = font_manager.get_font(path)
    except (OSError, RuntimeError, ValueError):
        # a font that cannot be opened draws nothing
        return frozenset()
    if not font.scalable:
        return frozenset()
    return frozenset(character for character in characters if font.get_char_index(ord(character)))


@functools.lru_cache(maxsize=32)
def _fallbacks(missing: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Few families that draw what is missing, the one that draws most first; and what none of them draws."""
    if not missing:
        return (), missing
    names = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in (400, "normal", "regular") and "Last Resort" not in entry.name
    }
    order = sorted(names - {BASE}, key=lambda name: (_rank(name, missing), name))
    drawn: dict[str, frozenset[str]] = {}
    for name in order:
        drawn[name] = _drawn_by(name, missing)
        if drawn[name] == missing:
            return (name,), frozenset()
    chosen: list[str] = []
    while missing:
        best = max(order, key=lambda name: len(drawn[name] & missing), default=None)
        if best is None or not drawn[best] & missing:
            break
        chosen.append(best)
        missing -= drawn[best]
    return tuple(chosen), missing


def _rank(name: str, characters: frozenset[str]) -> tuple[bool, bool, bool]:
    """Plain faces first; of those for Chinese, Japanese and Korean the one whose letters are in the text."""
    scripts = {unicodedata.name(character, "").split()[0:1][0] for character in characters if character.isalpha()}
    local = "KR" if "HANGUL" in scripts else "JP" if scripts & {"HIRAGANA", "KATAKANA"} else "SC"
    return "Sans" not in name, "Mono" in name, "CJK" in name and not name.endswith(local)
