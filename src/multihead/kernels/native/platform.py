"""What the CPU kernel takes from torch: its threads.

They are looked up by their standard name, GNU OpenMP's ``GOMP_parallel``, so that there is one pool of threads in the
process, and no one waits for another.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Platform:
    """What torch's library offers."""

    parallel: ctypes._CFuncPtr

    def run(self, work: int, data: int, threads: int) -> None:
        """Let ``threads`` of torch's threads, the caller's among them, each call ``work(data)``, and wait for all."""
        self.parallel(work, data, threads, 0)


@cache
def platform() -> Platform | str:
    """That of this process, or why it cannot be had."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return "torch's library is not where it stands on Linux"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except AttributeError:
        return "torch's library offers no GOMP_parallel"
    parallel.restype = None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return Platform(parallel)
