"""Files that appear whole or not at all, and never in the place of something that is no file.

A new file is written beside its place under a name of its own and then renamed, so nobody ever reads half of it and an
older one stays until the new one is complete. A rename also goes over a device, a pipe or a socket, which would then be
gone; these are refused. A symbolic link stays: what it leads to is written, as when a program opens it.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["other_than_a_file", "place_of", "written_whole"]

_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def other_than_a_file(path: str | os.PathLike[str]) -> str | None:
    """What there is at a path, or at the end of its links, in words; None for a file, and where there is nothing.

    Raises:
        OSError: the links lead in a circle, or nobody may look.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    return next((words for is_kind, words in _KINDS if is_kind(mode)), "no regular file")


def place_of(path: str | os.PathLike[str]) -> Path:
    """Where a file of this name would be written: at the end of links, where there may be a file already or nothing.

    Raises:
        IsADirectoryError: there is a folder.
        FileExistsError: there is something else that is no file: a pipe, a socket, a device.
        OSError: the links lead in a circle, or nobody may look.
    """
    kind = other_than_a_file(path)
    verb = "leads to" if Path(path).is_symlink() else "is"
    if kind == "a folder":
        raise IsADirectoryError(f"{path} {verb} a folder: name a file in it.")
    if kind is not None:
        raise FileExistsError(f"{path} {verb} {kind}, which a new file would replace: name another file.")
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside ``path``, to be written inside the block, that takes its place when the block ends.

    It is on disk before it has its name, and has the permissions of the file that it replaces. If the block fails,
    nothing of it stays.

    Raises:
        OSError: as :func:`place_of`, and where the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written_whole(Path(folder) / "a.txt") as part:
    ...         size = part.write_text("whole")
    ...     print([file.name for file in Path(folder).iterdir()])
    ['a.txt']
    """
    target = place_of(path)
    permissions = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        # what replaces a private file is private from its first byte on
        part.touch(0o666 if permissions is None else 0o600, exist_ok=False)
        yield part
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        if permissions is not None:
            part.chmod(permissions)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a renaming in a folder last through a power cut, where the system can open folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
