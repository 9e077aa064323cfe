"""Serving a recording to a browser, with the address printed before torch is there."""

import gc
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from multihead.cli.terminal import has_display
from multihead.web import EXPOSED, Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from multihead.front.front import Front
    from multihead.recording import Recording
    from multihead.view.pictures import Pictures
    from multihead.view.served import Served

SURELY = 1 << 25
"""Numbers of queries and keys whose page passes 64 MB, however they are rounded: it has some 18 bits for each."""

_LONGEST_HEADER = 100_000_000


class Door:
    """Where a recording is to be served.

    Args:
        host: None for this machine alone.
        port: None for a free one.
        opens: whether a browser is opened where there is a display.
    """

    def __init__(self, host: str | None, port: int | None, *, opens: bool) -> None:
        self.is_named = host is not None or port is not None
        self._host, self._port, self._opens = host or "127.0.0.1", port or 0, opens

    def serve(
        self,
        source: "Recording | Path",
        token: "Callable[[Recording], str | int | None] | None",
        pictures: "Pictures | None" = None,
    ) -> None:
        """Print the address and serve until interrupted.

        Args:
            source: a recording, or the file of one.
            token: what the page opens with, once the recording is open; None: what is likely.
            pictures: of its texts that are no words.

        Raises:
            SourceError: nothing can be served here, or there is no such token.
            RecordingError, ValueError: there is nothing to show.
        """

        def first() -> "Front | None":
            from multihead.front.front import front_of

            # a token is looked for in the open recording
            return front_of(source) if isinstance(source, Path) and token is None else None

        def opening(front: "Front | None" = None) -> "Served":
            return _opener()(source, token=token, pictures=pictures, front=front)

        site = Site(opening, first=first, host=self._host, port=self._port)
        if site.exposed:
            typer.echo(f"multihead: {EXPOSED}", err=True)
        typer.echo(site.url)
        if self._opens and has_display():
            import webbrowser

            webbrowser.open(site.url)
        site.run()


def _opener() -> "Callable[..., Served]":
    """What opens a recording with torch, which is imported here.

    The garbage collector rests meanwhile. It would look through all the modules again and again, and find nothing:
    1.1 s instead of 1.3 s.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        from multihead.view.server import opened
    finally:
        if collects:
            gc.enable()
    return opened


def is_surely_too_large(path: Path) -> bool:
    """Whether the page of a recording's file would surely pass 64 MB, by the shapes in the file's header alone.

    False where it may be or where the file is no recording: whoever opens it finds out.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= _LONGEST_HEADER else {}
        shapes = [entry["shape"] for name, entry in header.items() if name.endswith((".q", ".k"))]
        return sum(math.prod(shape[1:]) for shape in shapes) > SURELY
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
