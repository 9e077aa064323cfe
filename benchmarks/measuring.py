"""Timing in alternation, peak memory, and the name of the machine."""

import ctypes
import gc
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def alternate(rivals: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each, run in turn so that a noisy moment hits all alike."""
    for run in rivals.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def seconds_of_processes(programs: dict[str, str], rounds: int = 11) -> dict[str, float]:
    """Median seconds of whole Python processes, each running one program, in alternation."""
    return alternate(
        {
            name: lambda program=program: subprocess.run([sys.executable, "-c", program], check=True)
            for name, program in programs.items()
        },
        rounds,
    )


class PeakMemory:
    """Largest growth of the process's resident memory inside the block, in bytes, sampled every millisecond."""

    def __enter__(self) -> "PeakMemory":
        self.start = self.peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.001):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, _resident())

    @property
    def growth(self) -> int:
        """Bytes beyond what was there at the start."""
        return self.peak - self.start


def give_back_memory() -> None:
    """Let go of what is free, so that what a run takes next is seen; where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def table(title: str, head: tuple[str, ...], rows: list[tuple[object, ...]], note: str = "") -> str:
    """A Markdown table with the machine's name under the title."""
    lines = [f"## {title}", "", machine(), "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join([*lines, "", *([note, ""] if note else [])])
