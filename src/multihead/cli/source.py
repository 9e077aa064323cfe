"""Where a recording comes from: a text and a model, or a file."""

import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from multihead.cli.options import heads_of, numbers_of
from multihead.cli.places import check_writable

if TYPE_CHECKING:
    from multihead.recording import Recording
    from multihead.view.pictures import Pictures


class Source:
    """Where the recording comes from, checked before anything slow happens."""

    def __init__(
        self,
        text: str | None,
        file: Path | None,
        model: str | None,
        layers: str | None,
        heads: str | None,
        target: str | None,
        *,
        truncate: bool,
        save: Path | None,
        image: Path | None = None,
    ) -> None:
        self.image = image
        self.pictures: Pictures | None = None
        """Of the recording's texts that are no words; known once it is there."""
        self.model, self.target, self.truncate, self.save = model, target, truncate, save
        self.layers = None if layers is None else numbers_of("--layers", layers)
        self.heads = None if heads is None else heads_of(heads)
        if save is not None:
            check_writable(save)
        self.saved = Path(text) if text is not None and text.endswith(".safetensors") and file is None else None
        if image is not None:
            self._check_image({"TEXT": text, "--file": file, "--target": target, "--truncate": truncate or None})
        self.text = None if self.saved is not None or image is not None else text_of(text, file)
        if self.saved is None:
            return
        given = {
            "--model": model,
            "--layers": layers,
            "--heads": heads,
            "--target": target,
            "--truncate": truncate or None,
            "--save": save,
        }
        unfitting = [name for name, value in given.items() if value is not None]
        if unfitting:
            raise ValueError(
                f"{unfitting[0]} says how to record, and {self.saved} is recorded already: leave one of them out."
            )

    def recording(self, say: Callable[[str], None], *, maps: bool = False) -> "Recording":
        """Open the recording, or run the model; ``maps`` as for :func:`multihead.text.read`."""
        if self.saved is not None:
            say("opening the recording")
            from multihead.recording import load

            return load(self.saved)
        say("loading torch and transformers")
        if self.image is not None:
            return self._look(self.image, say)
        from multihead.text import DEFAULT_SENTENCE, load_model, read

        say("opening the model")
        model = load_model(self.model)
        say("reading the text")
        text = DEFAULT_SENTENCE if self.text is None else self.text
        return read(
            text, model, target=self.target, layers=self.layers, heads=self.heads, truncate=self.truncate, maps=maps
        )

    def _check_image(self, others: Mapping[str, object]) -> None:
        named = [name for name, value in others.items() if value is not None]
        if named:
            raise ValueError(f"--image is a picture to look at, and {named[0]} is about a text: leave one of them out.")
        if self.model is None:
            raise ValueError("--image needs a vision model: name its folder or its name on the hub with --model.")

    def _look(self, image: Path, say: Callable[[str], None]) -> "Recording":
        """Run a vision model on a picture."""
        from multihead.image import PATCHES, load_model, read
        from multihead.pixels import as_picture
        from multihead.view.pictures import Picture

        picture = as_picture(image)
        say("opening the model")
        model = load_model(self.model or "")
        say("looking at the picture")
        seen = read(picture, model, layers=self.layers, heads=self.heads)
        self.pictures = {PATCHES: Picture(seen.image, seen.grid, seen.first)}
        return seen.recording

    def keep(self, recording: "Recording") -> None:
        """Save what was seen, if asked to; only once all that was asked has proved to be there."""
        if self.save is not None:
            recording.save(self.save)

    def token(self, named: str | None, recording: "Recording") -> str | int | None:
        """The token to begin with; a number is a position unless the text has that number as a token."""
        if named is None and self.pictures is not None:
            from multihead.view.pictures import first_token

            return first_token(recording, self.pictures)
        if named is None and self.text is None and self.saved is None:
            from multihead.text import DEFAULT_TOKEN

            return DEFAULT_TOKEN
        if named is None:
            return None
        spelled = any(named in tokens for sequences in recording.texts.values() for tokens in sequences)
        return int(named) if named.isdecimal() and not spelled else named


def text_of(text: str | None, file: Path | None) -> str | None:
    """The text to read; None where nobody gave one.

    Raises:
        ValueError: it is named twice, or is no text.
        OSError: the file cannot be read.
    """
    if text is not None and file is not None:
        raise ValueError("there is a TEXT and a --file: give one of them.")
    if file is not None:
        return _decoded(file.read_bytes(), str(file))
    if text == "-" or (text is None and _piped()):
        return _decoded(sys.stdin.buffer.read(), "standard input")
    return text


def _decoded(raw: bytes, name: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {error.start} is {raw[error.start]:#04x}; convert it first, for example "
            "with iconv."
        ) from None
    if "\0" in text:
        raise ValueError(f"{name} holds zero bytes, so it is no text.")
    return text


def _piped() -> bool:
    """Whether somebody sends text: a pipe or a file, not a terminal, and not /dev/null as under cron."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return sys.stdin is not None and not sys.stdin.isatty()
    return not stat.S_ISCHR(mode)
