"""A recording served to a browser on this machine: for texts whose page would be too large. ``docs/server.md``."""

import contextlib
import logging
import os  # noqa: TC003
from collections.abc import Callable, Iterator
from pathlib import Path

from multihead.errors import RecordingError
from multihead.front.front import Front
from multihead.recording import Recording, load
from multihead.recording.stored import StoredLayer
from multihead.view.opening import start
from multihead.view.pictures import Pictures, named
from multihead.view.served import Served
from multihead.web import EXPOSED, Site, Watched

__all__ = ["opened", "serve", "serving"]


def opened(
    source: "Recording | str | os.PathLike[str]",
    *,
    item: int = 0,
    title: str | None = None,
    token: Callable[[Recording], str | int | None] | None = None,
    pictures: Pictures | None = None,
    front: Front | None = None,
) -> Served:
    """A recording, or the file of one, as what a site serves.

    Args:
        source: a recording, or the file of one.
        item: the sequence of the batch.
        title: the page's; None: the model's name.
        token: from the recording to the token that the page opens with, or to None for a likely one.
        pictures: as for :func:`multihead.view.page.page`.
        front: the page of the file, where it was made before.

    Raises:
        RecordingError, ValueError: as :func:`multihead.load` and :class:`Served`.
        SourceError: the token is not there.
    """
    if isinstance(source, Recording):
        recording, watched = source, files_of(source)
    else:
        watched = [Watched.of(Path(source))] if front is None else front.watched
        recording = load(source)
    recording = named(recording, pictures, item)
    chosen = None if token is None else token(recording)
    opening = None if chosen is None else start(recording, chosen, item=item)
    served = Served(recording, item=item, title=title, opening=opening, watched=watched, pictures=pictures, front=front)
    if not all(file.same() for file in watched):
        raise RecordingError(f"{watched[0].path} was changed while it was opened: try again.")
    return served


def files_of(recording: Recording) -> list[Watched]:
    """The files that a recording is mapped from, as they are now."""
    paths = {layer.path for layer in recording.layers if isinstance(layer, StoredLayer)}
    return [Watched.of(path) for path in sorted(paths)]


def serve(
    source: "Recording | str | os.PathLike[str]",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    item: int = 0,
    title: str | None = None,
    told: Callable[[str], None] | None = None,
    pictures: Pictures | None = None,
) -> None:
    """Serve a recording to browsers on this machine until interrupted.

    Args:
        source: a recording, or the file of one.
        host: where; ``0.0.0.0`` for everyone on the network who has the address.
        port: 0 for a free one.
        item: the sequence of the batch.
        title: the page's; None: the model's name.
        told: called with the address as soon as it is there; None: a line of ``logging``.
        pictures: as for :func:`multihead.view.page.page`.

    Raises:
        SourceError: starlette and uvicorn are missing, or the port is taken.
        RecordingError, ValueError: there is nothing to show.
    """
    site = Site(lambda: opened(source, item=item, title=title, pictures=pictures), host=host, port=port)
    if site.exposed:
        logging.getLogger("multihead").warning(EXPOSED)
    if told is None:
        logging.getLogger("multihead").warning("serving at %s", site.url)
    else:
        told(site.url)
    site.run()


@contextlib.contextmanager
def serving(
    source: "Recording | str | os.PathLike[str]",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    item: int = 0,
    pictures: Pictures | None = None,
) -> Iterator[str]:
    """Serve a recording from a thread inside the block, as in a notebook; the address.

    Raises:
        SourceError: as :func:`serve`.
    """
    with Site(lambda: opened(source, item=item, pictures=pictures), host=host, port=port).running() as url:
        yield url
