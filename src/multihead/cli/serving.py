"""Serving a recording to a browser, with the address printed before torch is there."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from multihead.cli.terminal import has_display
from multihead.web import EXPOSED, Site

if TYPE_CHECKING:
    from collections.abc import Callable

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
        token: "Callable[[Recording], str | int | None]",
        pictures: "Pictures | None" = None,
    ) -> None:
        """Print the address and serve until interrupted.

        Args:
            source: a recording, or the file of one.
            token: what the page opens with, once the recording is open.
            pictures: of its texts that are no words.

        Raises:
            SourceError: nothing can be served here, or there is no such token.
            RecordingError, ValueError: there is nothing to show.
        """

        def opening() -> "Served":
            from multihead.view.server import opened

            return opened(source, token=token, pictures=pictures)

        site = Site(opening, host=self._host, port=self._port)
        if site.exposed:
            typer.echo(f"multihead: {EXPOSED}", err=True)
        typer.echo(site.url)
        if self._opens and has_display():
            import webbrowser

            webbrowser.open(site.url)
        site.run()


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
