"""The options that several commands have, and what their words mean."""

from pathlib import Path
from typing import Annotated

import typer

Text = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT",
        help="The text to read, - for standard input, or a recording saved with --save (*.safetensors). "
        "Default: a sentence that is known well.",
        show_default=False,
    ),
]
File = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Read the text from a file (UTF-8).")]
Image = Annotated[
    Path | None,
    typer.Option("--image", metavar="FILE", help="Look at a picture instead of a text; --model names a vision model."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A folder or a hub name. Default: the packaged demo model, offline."),
]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="LIST", help="Layers to record, from 0: 0,2-5. Default: all.")
]
Heads = Annotated[
    str | None,
    typer.Option("--heads", metavar="LIST", help="Heads to record: 0,2-5 in every layer, or 2:1,5:9. Default: all."),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="The token to begin with or its position. Default: the longest word."
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="TEXT", help="What a decoder reads. Default: what the model itself writes."),
]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut off a text that is longer than the model takes.")]
Save = Annotated[
    Path | None, typer.Option("--save", metavar="FILE", help="Save what was seen as a recording (*.safetensors).")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where to write the page. Default: attention.html here, or attention-2.html, ... if it is taken.",
    ),
]


def numbers_of(option: str, words: str) -> list[int]:
    """``0,2-5`` as numbers.

    >>> numbers_of("--layers", "0,2-5")
    [0, 2, 3, 4, 5]

    Raises:
        ValueError: it is no such list.
    """
    found: list[int] = []
    for part in words.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first + last) > 9:
            raise ValueError(f"{option} {words!r} is no list of numbers: say for example {option} 0,2-5.")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers:
            raise ValueError(f"{option} {words!r} counts backwards: say {last}-{first}.")
        if len(numbers) > 10_000:
            raise ValueError(f"{option} {words!r} names {len(numbers)} of them: no model has so many.")
        found += numbers
    return found


def heads_of(words: str) -> list[int] | dict[int | str, list[int]]:
    """Heads for every layer, or ``layer:head`` pairs.

    >>> heads_of("2:1,5:9,5:10-11")
    {2: [1], 5: [9, 10, 11]}

    Raises:
        ValueError: it is neither.
    """
    if ":" not in words:
        return numbers_of("--heads", words)
    found: dict[int | str, list[int]] = {}
    for part in words.split(","):
        layer, colon, heads = part.partition(":")
        if not colon or not layer.strip().isdecimal():
            raise ValueError(f"--heads {words!r} is no list of layer:head: say for example --heads 2:1,5:9.")
        found.setdefault(int(layer), []).extend(numbers_of("--heads", heads))
    return found
