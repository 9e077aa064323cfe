"""Files that must stay as they were opened, because they are mapped."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Watched:
    """A file and what it was: another one of its name, a longer, shorter or later written one is not the same."""

    path: Path
    mark: tuple[int, ...] | None

    @classmethod
    def of(cls, path: Path) -> "Watched":
        """A file as it is now."""
        return cls(path, _mark(path))

    def same(self) -> bool:
        """Whether it still is what it was."""
        return _mark(self.path) == self.mark


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
