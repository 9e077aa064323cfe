"""What looking costs: time beside SDPA's forward on the same inputs, and memory beyond inputs and outputs.

Targets on a 2-core CPU, float32: lse, max, entropy and top 8 with the output at most 1.10 × SDPA; everything with the
output at most 1.25 × from length 2048 on and 1.6 × at 512, with at most 64 MB; at length 131,072, causal, everything at
most 1.25 × with at most 256 MB, and 16 rows at most 1 % of SDPA's time.
"""

import subprocess
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import multihead as mh
from benchmarks.measuring import PeakMemory, alternate, table
from multihead.core import AttentionCall, reference
from multihead.kernels import measure
from tests.accuracy import check

NONE = {"lse": False, "max_score": False, "entropy": False, "visible": False}

ASKED = {
    "output only": mh.Statistics(**NONE),
    "lse, max, entropy": mh.Statistics(visible=False),
    "lse, max, entropy, top 8": mh.Statistics(visible=False, top=8),
    "top 8": mh.Statistics(**NONE, top=8),
    "received": mh.Statistics(**NONE, received=True),
    "offsets": mh.Statistics(**NONE, offsets=True),
    "blocks of 64 × 64": mh.Statistics(**NONE, blocks=(64, 64)),
    "rows and columns, 8 each": mh.Statistics(**NONE, rows=tuple(range(8)), columns=tuple(range(8))),
    "everything": mh.Statistics.every(rows=range(8), columns=range(8)),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention."""

    heads: int
    kv_heads: int
    length: int
    dim: int

    def inputs(self, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Random q, k, v of one sequence."""
        generator = torch.Generator().manual_seed(0)
        length = length or self.length
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (torch.randn(1, heads, length, self.dim, generator=generator) for heads in sizes)
        return q, k, v

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.kv_heads else f"{self.heads}/{self.kv_heads}"
        return f"{heads} × {self.length} × {self.dim}"


SHAPES = (Shape(12, 12, 512, 32), Shape(8, 8, 2048, 64), Shape(32, 8, 4096, 128), Shape(8, 8, 8192, 64))
LONGEST = Shape(1, 1, 131072, 64)


def right(shape: Shape) -> None:
    """Refuse to time what is wrong: output and statistics at a length where the formula fits in memory."""
    call = AttentionCall(*shape.inputs(257), mask=mh.masks.causal())
    asked = mh.Statistics(received=True, top=8, rows=tuple(range(257)))
    output, seen = mh.inspect(call.q, call.k, call.v, mask=call.mask, statistics=asked)
    exact, plain = reference(call), reference(call, torch.float32)
    check(output, exact.output, plain.output, "output")
    check(seen.rows, exact.weights, plain.weights, "rows")
    pairs = {
        "entropy": [torch.special.entr(found.weights).sum(-1) for found in (exact, plain)],
        "received": [found.weights.sum(-2) for found in (exact, plain)],
        "top_weights": [found.weights.topk(8).values for found in (exact, plain)],
    }
    for name, answers in pairs.items():
        check(getattr(seen, name), *answers, name)


def seconds(shape: Shape, *, causal: bool) -> dict[str, float]:
    """Median seconds of each selection with the output, of the lens's alone, and of SDPA alone."""
    q, k, v = shape.inputs()
    mask = mh.masks.causal() if causal else None
    call = AttentionCall(q, k, v, mask=mask)
    rivals = {
        "SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    }
    for name, statistics in ASKED.items():
        rivals[name] = lambda statistics=statistics: mh.inspect(q, k, v, statistics=statistics, mask=mask)
    rivals["the default ones, no output"] = lambda: measure(call, mh.Statistics())
    return alternate(rivals, rounds={512: 151, 2048: 15}.get(shape.length, 5))


def products(shape: Shape, *, causal: bool) -> float:
    """Seconds that the two matrix products would take at the rate of a large one of torch's, measured here and now."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    rate = 2 * 2048**3 / alternate({"product": lambda: a @ b}, 5)["product"]
    return 4 * shape.heads * shape.length**2 * shape.dim / rate / (2 if causal else 1)


def memory_of(shape: Shape, name: str, *, causal: bool) -> tuple[int, int]:
    """Peak bytes beyond inputs and outputs, and bytes of the outputs."""
    q, k, v = shape.inputs()
    mask = mh.masks.causal() if causal else None
    with torch.no_grad():
        mh.inspect(*shape.inputs(64), statistics=ASKED[name], mask=mask)
        with PeakMemory() as peak:
            out, seen = mh.inspect(q, k, v, statistics=ASKED[name], mask=mask)
    answers = out.nbytes + sum(value.nbytes for value in seen.named().values())
    return peak.growth - answers, answers


def in_own_process(shape: Shape, name: str, *, causal: bool) -> tuple[int, ...]:
    """:func:`memory_of` in a new process, whose allocator holds nothing back from earlier work."""
    program = f"from benchmarks.lens import *\nprint(*memory_of({shape!r}, {name!r}, causal={causal}))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return tuple(int(size) for size in answer.stdout.split())


def longest() -> str:
    """One head over 131,072 tokens: the whole, and 16 rows."""
    q, k, v = LONGEST.inputs()
    mask = mh.masks.causal()
    some = torch.arange(16) * 8192 + 8191
    call = AttentionCall(q, k, v, mask=mask)
    rivals = {
        "SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "lse, max, entropy, top 8": lambda: mh.inspect(
            q, k, v, statistics=ASKED["lse, max, entropy, top 8"], mask=mask
        ),
        "everything": lambda: mh.inspect(q, k, v, statistics=ASKED["everything"], mask=mask),
        "16 rows": lambda: measure(call, mh.Statistics(rows=tuple(some.tolist())), queries=some),
    }
    found = alternate(rivals, rounds=2)
    rows = []
    for name, time in found.items():
        beyond = f"{in_own_process(LONGEST, name, causal=True)[0] / 1e6:.0f} MB" if name in ASKED else ""
        rows.append((name, f"{time:.2f} s", f"{time / found['SDPA']:.4f} ×", beyond))
    return table(f"{LONGEST}, causal", ("asked", "median", "beside SDPA", "peak beyond inputs and outputs"), rows)


def run() -> str:
    """The tables."""
    for shape in SHAPES:
        right(shape)
    cases = [(shape, causal) for shape in SHAPES for causal in (False, True)]
    with torch.no_grad():
        found = {case: seconds(case[0], causal=case[1]) for case in cases}
        limits = {case: products(case[0], causal=case[1]) for case in cases}
    rows: list[tuple[object, ...]] = []
    for name in next(iter(found.values())):
        if name != "SDPA":
            rows.append((name, *(f"{times[name] / times['SDPA']:.2f} ×" for times in found.values())))
    limit = (f"{limits[case] / found[case]['SDPA']:.2f} ×" for case in cases)
    rows.append(("the matrix products alone, at the rate of torch's", *limit))
    rows.append(("SDPA itself", *(f"{1000 * times['SDPA']:.1f} ms" for times in found.values())))
    head = ("asked", *(f"{shape}{', causal' if causal else ''}" for shape, causal in cases))
    times = table("Looking, with the output, beside SDPA (heads × length × head_dim, float32)", head, rows)
    memory = []
    for shape, causal in cases:
        beyond, answers = in_own_process(shape, "everything", causal=causal)
        whole = f"{4 * shape.heads * shape.length**2 / 1e6:.0f} MB"
        name = f"{shape}{', causal' if causal else ''}"
        memory.append((name, f"{beyond / 1e6:.0f} MB", f"{answers / 1e6:.0f} MB", whole))
    columns = ("heads × length × head_dim", "peak beyond inputs and outputs", "outputs", "the weights would be")
    with torch.no_grad():
        return "\n".join((times, table("Memory of everything", columns, memory), longest()))
