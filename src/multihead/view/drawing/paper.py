"""What every figure is drawn on: colours, scales, a sheet measured in inches, and files that come out the same."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm, Normalize, PowerNorm, to_hex, to_rgb
from matplotlib.figure import Figure

from multihead.files import written_whole
from multihead.view.drawing.letters import Letters

DPI = 200
WIDTH = 6.75
"""Inches: two columns of most journals."""
POINT = 1 / 72
EDGE = 0.08

TITLE, TEXT, LABEL, SMALL = 10.0, 9.0, 7.0, 6.5
"""Sizes of letters, in points."""

TEXT_TINT = 0.44
"""The strongest tint that text may stand on: its contrast stays above 4.5 on both grounds."""

DECADES = 4
"""How far below the largest weight a logarithmic scale reaches."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "multihead",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "text.hinting": "none",
    "font.sans-serif": ["DejaVu Sans"],
}
_WITHOUT_DATE: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Theme:
    """The page's colours (``viewer/src/colours.ts`` and ``style.css``)."""

    paper: str
    ink: str
    quiet: str
    rule: str
    map: str
    heads: tuple[str, ...]

    def head(self, place: int) -> tuple[str, bool]:
        """The colour of the head at a place in its layer's list, and whether its lines are dashed."""
        return self.heads[place % len(self.heads)], place // len(self.heads) % 2 == 1

    def ramp(self) -> Colormap:
        """From the paper to the colour of maps; what is below a logarithmic scale is paper."""
        ramp = LinearSegmentedColormap.from_list("multihead", [self.paper, self.map])
        return ramp.with_extremes(bad=self.paper, under=self.paper)


# the page's light ground is a little yellow; on a journal's page it would stand as a box
LIGHT = Theme(
    paper="#ffffff", ink="#1d2229", quiet="#5a626c", rule="#e2dfd7", map="#34475c",
    heads=("#0072b2", "#d55e00", "#009e73", "#bb7799", "#aa1177", "#2233cc", "#665500", "#0088ff", "#aa5555", "#770011",
           "#335533", "#443344"),
)  # fmt: skip
DARK = Theme(
    paper="#15181c", ink="#e9e7e2", quiet="#a4abb4", rule="#30353c", map="#a9b6c4",
    heads=("#55aaff", "#f0813a", "#33aa77", "#bb99bb", "#bb4499", "#6677ee", "#ffbb44", "#00ddff", "#cc1155", "#aa7744",
           "#99cc88", "#558877"),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What people choose about every figure."""

    scale: str
    width: float | None
    """Inches; None: what the figure needs."""
    height: float | None
    theme: Theme
    title: str | None


def mixed(colour: str, ground: str, share: float) -> str:
    """``share`` of a colour over a ground."""
    over, under = np.array(to_rgb(colour)), np.array(to_rgb(ground))
    red, green, blue = share * over + (1 - share) * under
    return to_hex((red, green, blue))


def title_room(look: Look) -> float:
    """Inches that the title takes."""
    return TITLE * POINT * 1.8 if look.title else 0.0


def norm_of(scale: str, peak: float) -> Normalize:
    """From weights to 0 ... 1 at ``peak``: ``linear``, ``sqrt`` or ``log`` over DECADES decades."""
    peak = peak if peak > 0 else 1.0
    if scale == "log":
        return LogNorm(vmin=peak * 10.0**-DECADES, vmax=peak)
    return Normalize(0.0, peak) if scale == "linear" else PowerNorm(0.5, 0.0, peak)


def strengths(norm: Normalize, weights: np.ndarray) -> np.ndarray:
    """What a norm makes of weights, 0 where it has nothing to say."""
    return np.ma.filled(np.ma.clip(norm(np.ma.asarray(weights)), 0.0, 1.0), 0.0)


@contextlib.contextmanager
def our_style() -> Iterator[None]:
    """Defaults of matplotlib and what figures need; afterwards everything is as the caller had set it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


class AttentionFigure(Figure):
    """A matplotlib figure that is saved the same each time, and shows itself in notebooks."""

    notes: tuple[str, ...] = ()
    """What the figure leaves out or changes, a sentence each; () where there is nothing to say."""

    def savefig(self, fname: Any, *, transparent: bool | None = None, **options: Any) -> None:
        """Like matplotlib's, but PNG, SVG and PDF hold no date and no random names, and text stays text in SVG and PDF.

        A file appears whole or not at all. The same figure gives the same bytes wherever matplotlib and the fonts are
        the same.

        Args:
            fname: a path, whose suffix says the format (PNG without one); or an open binary file.
            transparent: leave the ground out.
            **options: matplotlib's: ``format``, ``dpi``, ``metadata``, ``bbox_inches``, ...

        Raises:
            OSError: the file cannot be written.
            ValueError: matplotlib does not know the format.
        """
        path = Path(fname) if isinstance(fname, str | os.PathLike) else None
        suffix = path.suffix[1:].lower() if path else ""
        kind = options.pop("format", None) or suffix or "png"
        metadata = {**_WITHOUT_DATE.get(kind, {}), **(options.pop("metadata", None) or {})}
        if metadata:
            options["metadata"] = metadata
        with our_style():
            if path is None:
                super().savefig(fname, transparent=transparent, format=kind, **options)
                return
            with written_whole(path if suffix else path.with_name(f"{path.name}.{kind}")) as part:
                super().savefig(part, transparent=transparent, format=kind, **options)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file)
        return file.getvalue()


class Sheet:
    """A figure being drawn: places are inches from the left and from the top, and lie on one pair of axes."""

    def __init__(self, letters: Letters, look: Look, width: float, height: float) -> None:
        self.letters, self.theme, self.width, self.height = letters, look.theme, width, height
        self.figure = AttentionFigure(figsize=(width, height), dpi=DPI, facecolor=look.theme.paper)
        self.axes = self.axes_at(0.0, 0.0, width, height)
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_axis_off()
        if look.title:
            self.write(EDGE, EDGE + TITLE * POINT, look.title, size=TITLE)

    def axes_at(self, x: float, y: float, width: float, height: float) -> Axes:
        """New axes over a rectangle."""
        top = self.height - y - height
        return self.figure.add_axes(
            (x / self.width, top / self.height, width / self.width, height / self.height), facecolor=self.theme.paper
        )

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = LABEL,
        colour: str | None = None,
        align: str = "left",
        gid: str | None = None,
    ) -> None:
        """Text with its baseline at ``y``."""
        self.axes.text(
            x, y, self.letters.drawn(text), ha=align, va="baseline", gid=gid, color=colour or self.theme.ink,
            **self.letters.options(size),
        )  # fmt: skip

    def write_turned(self, x: float, y: float, text: str) -> None:
        """A quiet label that reads upwards, its middle at a place."""
        self.axes.text(
            x, y, text, ha="center", va="center", rotation=90, color=self.theme.quiet, **self.letters.options(LABEL)
        )


def caption_lines(letters: Letters, sentences: Sequence[str], width: float) -> list[str]:
    """Small print in lines that fit a width."""
    lines: list[str] = []
    for word in " ".join(sentences).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and letters.width(joined, SMALL) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines
