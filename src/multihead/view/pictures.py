"""Texts that are no words: the patches of a picture, the frames of a sound. ``docs/pictures.md``.

A recording holds what was computed, not what was seen, so the picture is given when it is looked at.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from multihead.conventions import in_words
from multihead.counting import whole, whole_numbers
from multihead.front.document import texts_of
from multihead.pixels import as_address, as_picture, as_spectrogram, frame_names, patch_names
from multihead.recording import Recording

__all__ = ["Frames", "Picture", "Pictures", "first_token", "named", "nodes"]

Node = dict[str, object]


@dataclass(frozen=True, eq=False)
class Picture:
    """The picture whose patches are a text's tokens, row after row from the upper left.

    Args:
        image: as the model saw it, cropped where the model's processor crops: a picture of Pillow's, an array
            (height, width, 3) of bytes or of fractions from 0 to 1, or a path.
        grid: rows and columns of patches.
        first: tokens before the patches: the class token, registers, or the words before a picture in a prompt.
        last: tokens after them.

    Raises:
        TypeError: something is no whole number.
        ValueError: the grid is no pair or has no patch, or ``first`` or ``last`` is negative.
    """

    image: Any
    grid: tuple[int, int]
    first: int = 1
    last: int = 0

    def __post_init__(self) -> None:
        numbers = whole_numbers("grid", self.grid)
        if len(numbers) != 2:
            raise ValueError(f"grid has {len(numbers)} numbers, expected two: rows and columns of patches.")
        rows, columns = numbers
        if rows < 1 or columns < 1:
            raise ValueError(f"grid is {rows} × {columns}, expected at least one row and one column of patches.")
        for name in ("first", "last"):
            number = whole(name, getattr(self, name))
            if number < 0:
                raise ValueError(f"{name}={number} is negative, expected how many tokens stand there.")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "grid", (rows, columns))

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        rows, columns = self.grid
        return self.first + rows * columns + self.last

    def names(self, count: int) -> list[str]:
        """A name for each of ``count`` tokens.

        Raises:
            ValueError: there are fewer or more of them.
        """
        rows, columns = self.grid
        if count != self.tokens:
            after = f" and {self.last} after them" if self.last else ""
            raise ValueError(
                f"its {rows} × {columns} patches with first={self.first} before them{after} are {self.tokens} tokens, "
                f"but the text has {count}: {self._advice(count)}."
            )
        return patch_names(self.grid, self.first, self.last)

    def _advice(self, count: int) -> str:
        side = math.isqrt(count - self.first) if count > self.first else 0
        if side and side * side == count - self.first and not self.last:
            return f"say grid=({side}, {side}), or another grid of {side * side} patches"
        return "say how many rows and columns of patches there are, and the tokens before (first) and after (last)"

    def node(self) -> Node:
        """What the document says about it."""
        address, size = as_address(as_picture(self.image))
        return {"picture": {"src": address, "size": list(size), "grid": list(self.grid), "first": self.first}}


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a sound, which are a text's tokens in order of time.

    Args:
        seconds_per_frame: from one to the next; 0.02 in Whisper's encoder.
        image: its spectrogram, time from left to right: an array (frequencies, frames) of any numbers, the lowest
            frequency first, or a picture as for :class:`Picture`. None: a plain strip.

    Raises:
        TypeError: the seconds are no number.
        ValueError: they are not positive and finite.
    """

    seconds_per_frame: float
    image: Any = None

    def __post_init__(self) -> None:
        seconds = self.seconds_per_frame
        if isinstance(seconds, bool) or not isinstance(seconds, Real):
            raise TypeError(f"seconds_per_frame={seconds!r} is no number.")
        object.__setattr__(self, "seconds_per_frame", float(seconds))
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"seconds_per_frame={seconds} is no length of time: say how many seconds a frame takes.")

    def names(self, count: int) -> list[str]:
        """When each of ``count`` frames begins."""
        return frame_names(count, self.seconds_per_frame)

    def node(self) -> Node:
        """What the document says about it."""
        if self.image is None:
            return {"seconds_per_frame": self.seconds_per_frame}
        address, size = as_address(as_spectrogram(self.image), keep_shape=False)
        return {"seconds_per_frame": self.seconds_per_frame, "spectrogram": {"src": address, "size": list(size)}}


Pictures = Mapping[str, Picture | Frames]
"""By the name of a text."""


def named(recording: Recording, pictures: Pictures | None, item: int = 0) -> Recording:
    """The recording, with a name for each patch and frame where its texts have none: ``r3c5``, ``1.24 s``.

    Raises:
        ValueError: a picture belongs to no text, or does not fit it.
    """
    if not pictures:
        return recording
    texts = dict(recording.texts)
    lengths = {name: len(tokens) for name, tokens in texts_of(recording, item).items()}
    for name, picture in pictures.items():
        if name not in lengths:
            raise ValueError(
                f"pictures has {name!r}, but the texts of the recording are {in_words(map(repr, lengths))}."
            )
        try:
            names = picture.names(lengths[name])
        except ValueError as error:
            raise ValueError(f"the picture of {name!r} does not fit: {error}") from None
        known = texts.get(name)
        if known is None or all(_are_positions(tokens) for tokens in known):
            batch = len(known) if known is not None else _batch(recording, name)
            texts[name] = [names] * batch
    return replace(recording, texts=texts)


def nodes(pictures: Pictures | None) -> dict[str, Node]:
    """What the document says about the texts that have pictures, by their names.

    Raises:
        ImportError: Pillow is missing.
        ValueError, TypeError, OSError: a picture cannot be read.
    """
    return {name: picture.node() for name, picture in (pictures or {}).items()}


def first_token(recording: Recording, pictures: Pictures | None) -> int | None:
    """The token to begin with where pictures ask: the class token, or else the middle patch; None where words ask."""
    asking = recording.layers[-1].query_text if recording.layers else None
    picture = (pictures or {}).get(asking) if asking is not None else None
    if not isinstance(picture, Picture):
        return None
    rows, columns = picture.grid
    return 0 if picture.first else rows // 2 * columns + columns // 2


def _are_positions(tokens: object) -> bool:
    """Whether tokens are no more than their own positions, as a recording without tokens has them."""
    words = list(tokens) if isinstance(tokens, (list, tuple)) else []
    return bool(words) and words[0].isdecimal() and words == [str(int(words[0]) + place) for place in range(len(words))]


def _batch(recording: Recording, name: str) -> int:
    return next(layer.sizes.batch for layer in recording.layers if name in (layer.query_text, layer.key_text))
