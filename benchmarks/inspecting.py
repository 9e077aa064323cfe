"""What looking costs: time beside SDPA, and memory beyond inputs and outputs.

Target at (1, 8, 8192, 64), every statistic: at most 256 MB.
"""

import subprocess
import sys

import torch
import torch.nn.functional as F

import multihead as mh
from benchmarks.measuring import PeakMemory, alternate, table
from tests.accuracy import check

LENGTHS = (512, 2048, 8192)
HEADS, DIM = 8, 64

ASKED = {
    "none (output only)": None,
    "light (lse, max, entropy, visible)": mh.Statistics(),
    "top=8": mh.Statistics(top=8),
    "received": mh.Statistics(received=True),
    "offsets": mh.Statistics(offsets=True),
    "blocks of 64 × 64": mh.Statistics(blocks=(64, 64)),
    "rows and columns, 8 each": mh.Statistics(rows=tuple(range(8)), columns=tuple(range(8))),
    "every statistic": mh.Statistics.every(rows=range(8), columns=range(8)),
}


def inputs(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random q, k, v of one sequence."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3))


def right() -> None:
    """Refuse to time what is wrong: entropy and received at a length where the formula fits in memory."""
    q, k, v = inputs(257)
    _, seen = mh.inspect(q, k, v, statistics=mh.Statistics(received=True), mask=mh.masks.causal())
    exact, plain = (_by_formula(q.to(dtype), k.to(dtype)) for dtype in (torch.float64, torch.float32))
    for name in ("entropy", "received"):
        check(getattr(seen, name), exact[name], plain[name], name)


def _by_formula(q: torch.Tensor, k: torch.Tensor) -> dict[str, torch.Tensor]:
    scores = (q @ k.transpose(-2, -1)) * DIM**-0.5
    weights = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    return {"entropy": torch.special.entr(weights).sum(-1), "received": weights.sum(-2)}


def seconds(length: int, causal: bool) -> dict[str, float]:
    """Median seconds of each selection, and of SDPA alone."""
    q, k, v = inputs(length)
    mask = mh.masks.causal() if causal else None
    rivals = {"SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal)}
    for name, statistics in ASKED.items():
        if statistics is None:
            rivals[name] = lambda: mh.attention(q, k, v, mask=mask)
        else:
            rivals[name] = lambda statistics=statistics: mh.inspect(q, k, v, statistics=statistics, mask=mask)
    return alternate(rivals, rounds=5 if length < 8192 else 3)


def memory_of(length: int, name: str) -> tuple[int, int]:
    """Peak bytes beyond inputs and outputs, and bytes of the outputs."""
    q, k, v = inputs(length)
    short = inputs(64)
    with torch.no_grad():
        mh.inspect(*short, statistics=ASKED[name])
        with PeakMemory() as peak:
            out, seen = mh.inspect(q, k, v, statistics=ASKED[name])
    answers = out.nbytes + sum(value.nbytes for value in seen.named().values())
    return peak.growth - answers, answers


def in_own_process(length: int, name: str) -> tuple[int, ...]:
    """:func:`memory_of` in a new process, whose allocator holds nothing back from earlier work."""
    program = f"from benchmarks.inspecting import memory_of\nprint(*memory_of({length}, {name!r}))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return tuple(int(size) for size in answer.stdout.split())


def run() -> str:
    """The tables."""
    right()
    rows = []
    with torch.no_grad():
        found = {(length, causal): seconds(length, causal) for length in LENGTHS for causal in (False, True)}
    for name in ASKED:
        cells = [f"{times[name] / times['SDPA']:.2f} ×" for times in found.values()]
        rows.append((name, *cells))
    rows.append(("SDPA itself", *(f"{1000 * times['SDPA']:.1f} ms" for times in found.values())))
    head = ("asked", *(f"{length}{' causal' if causal else ''}" for length, causal in found))
    times = table(f"Looking, beside SDPA (1 × {HEADS} heads × length × {DIM}, float32)", head, rows)

    memory = [
        (length, name, *(f"{size / 1e6:.0f} MB" for size in (*in_own_process(length, name), 4 * HEADS * length**2)))
        for length in (2048, 8192, 16384)
        for name in ("light (lse, max, entropy, visible)", "every statistic")
    ]
    return (
        times
        + "\n"
        + table(
            "Memory of looking",
            ("length", "asked", "peak beyond inputs and outputs", "outputs", "the weights would be"),
            memory,
        )
    )
