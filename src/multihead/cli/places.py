"""Where files are written, looked at before the work that they are to hold."""

import os
from pathlib import Path

from multihead.files import place_of


def free_name() -> Path:
    """attention.html in this folder, or the first of attention-2.html, ... that is free.

    Not the temporary folder: browsers in a sandbox cannot open files there.
    """
    names = (Path("attention.html" if number == 1 else f"attention-{number}.html") for number in range(1, 10_000))
    return next((name for name in names if not os.path.lexists(name)), Path("attention.html"))


def check_writable(path: Path) -> None:
    """Raise before the work where a file can surely not be written after it."""
    folder = place_of(path).parent
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {folder}.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: the folder {folder} is not yours to write in.")


def check_apart(files: dict[str, Path | None]) -> None:
    """Raise where one file would be written over another that was named."""
    places: dict[str, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        before = places.setdefault(os.path.realpath(path), name)
        if before != name:
            raise ValueError(f"{before} and {name} are one file, {path}: one would be written over the other.")
