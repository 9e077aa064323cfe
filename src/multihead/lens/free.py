"""How much memory is free, on a device and within the limits that a container or a batch job sets."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch


class _Accounts(NamedTuple):
    """Where a version of Linux's control groups says what a group may take, takes, and would give back."""

    folder: str
    limit: str
    usage: str
    cached: str


_VERSIONS = {
    "": _Accounts("", "memory.max", "memory.current", "inactive_file"),
    "memory": _Accounts("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""By the controllers that /proc/self/cgroup names: none in version 2, its own name in version 1."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody says.

    Of a CPU's memory, no more than the control groups of this process leave it: those of a container, or of a job on a
    cluster.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((free for free in (_machine(), *_groups()) if free is not None), default=None)


def _machine() -> int | None:
    """What this machine's memory has left."""
    if sys.platform == "linux":
        try:
            return 1024 * _numbers(Path("/proc/meminfo"))["MemAvailable:"]
        except (OSError, KeyError, ValueError):
            pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _groups(memberships: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What each control group that this process is in may still take; those above a group limit it too."""
    try:
        lines = memberships.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in set(controllers.split(",")) & set(_VERSIONS):
            accounts = _VERSIONS[name]
            folder = root / accounts.folder
            # inside a container the path may be the host's, and what limits the container stands at the root
            for group in (folder, *(folder / Path(*parts) for parts in _prefixes(Path(path).parts[1:]))):
                left = _left(group, accounts)
                if left is not None:
                    yield left


def _prefixes(parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (parts[:length] for length in range(1, len(parts) + 1))


def _left(group: Path, accounts: _Accounts) -> int | None:
    """What a control group may still take; None where it has no limit, or is not to be seen."""
    try:
        limit = int((group / accounts.limit).read_text(encoding="ascii"))
        usage = int((group / accounts.usage).read_text(encoding="ascii"))
        # pages of files that nobody has used for a while are given back when they are needed
        cached = _numbers(group / "memory.stat").get(accounts.cached, 0)
    except (OSError, ValueError):
        return None
    return max(0, limit - max(0, usage - cached))


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    rows = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
