"""The layer beside the least that a layer can do, and beside other libraries' layers, with the same weights.

The floor is one fused projection, SDPA and one projection. Targets: at most 1.05 × the floor (1.3 × at the smallest
size) and never slower than the others; with weights, at length 2048, at most 0.6 × torch's layer; memory of training
at length 8192 at most 5 % beyond the floor's.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import multihead as mh
from benchmarks.measuring import PeakMemory, alternate, table
from multihead.torch_compat import MultiheadAttention
from tests.accuracy import check

SIZES = ((2, 10, 64, 8), (8, 128, 512, 8), (1, 2048, 512, 8), (4, 512, 768, 12), (1, 8192, 1024, 16))
"""Batch, length, width, heads."""

Layer = Callable[[Tensor], Tensor]


class Apart(nn.Module):
    """The floor with three projections in the place of one: what it costs that each is a module that can be hooked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            project(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class Floor(nn.Module):
    """One fused projection, SDPA, one projection, and nothing else."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


def layers(width: int, heads: int) -> dict[str, tuple[nn.Module, Layer]]:
    """Every layer that is installed, with one set of weights: the module, and how it is called."""
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias, std=0.1)
    nn.init.normal_(theirs.out_proj.bias, std=0.1)
    floor = Floor(width, heads)
    floor.qkv.load_state_dict({"weight": theirs.in_proj_weight, "bias": theirs.in_proj_bias})
    floor.out.load_state_dict(theirs.out_proj.state_dict())
    ours = mh.MultiHeadAttention.from_torch(theirs)
    fused = mh.MultiHeadAttention.from_torch(theirs, fused=True)
    apart = Apart(width, heads)
    for mine, projection in (("q", ours.q_proj), ("k", ours.k_proj), ("v", ours.v_proj), ("out", ours.out_proj)):
        getattr(apart, mine).load_state_dict(projection.state_dict())
    found: dict[str, tuple[nn.Module, Layer]] = {
        "the floor": (floor, floor),
        "the floor, three projections": (apart, apart),
        "multihead": (ours, ours),
        "multihead, fused": (fused, fused),
        "nn.MultiheadAttention": (theirs, lambda x: theirs(x, x, x, need_weights=False)[0]),
    }
    if importlib.util.find_spec("x_transformers"):
        module = _x_transformers(ours)
        found["x-transformers"] = (module, module)
    if importlib.util.find_spec("torchtune"):
        tuned = _torchtune(ours)
        found["torchtune"] = (tuned, lambda x: tuned(x, x))
    return found


def _x_transformers(ours: mh.MultiHeadAttention) -> nn.Module:
    from x_transformers.x_transformers import Attention

    # its projections have no biases
    module = Attention(dim=ours.embed_dim, heads=ours.num_heads, dim_head=ours.head_dim, flash=True, causal=False)
    for name, projection in (("to_q", ours.q_proj), ("to_k", ours.k_proj), ("to_v", ours.v_proj)):
        getattr(module, name).load_state_dict({"weight": projection.weight})
    module.to_out.load_state_dict({"weight": ours.out_proj.weight})
    return module


def _torchtune(ours: mh.MultiHeadAttention) -> nn.Module:
    from torchtune.modules import MultiHeadAttention

    width = ours.embed_dim
    parts = {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "output_proj")}
    for name, part in parts.items():
        part.load_state_dict(getattr(ours, name.replace("output", "out")).state_dict())
    heads = {"num_heads": ours.num_heads, "num_kv_heads": ours.num_heads, "head_dim": ours.head_dim}
    return MultiHeadAttention(embed_dim=width, **heads, **parts, is_causal=False, max_seq_len=16384)


def right(found: dict[str, tuple[nn.Module, Layer]], width: int) -> None:
    """Refuse to time what is wrong: the floor's output and gradient, in float64, within the bar."""
    x = torch.randn(2, 7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def outcome(name: str, dtype: torch.dtype, *, biases: bool) -> tuple[Tensor, Tensor]:
        module, run = found[name]
        kept = {key: value.clone() for key, value in module.state_dict().items()}
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if not biases and "bias" in key:
                    parameter.zero_()
        module.to(dtype)
        inputs = x.to(dtype).requires_grad_()
        with torch.enable_grad():
            output = run(inputs)
            (gradient,) = torch.autograd.grad(output.square().sum(), inputs)
        module.to(torch.float32).load_state_dict(kept)
        return output.detach(), gradient

    for name in found:
        biases = name != "x-transformers"
        exact = outcome("the floor", torch.float64, biases=biases)
        plain = outcome("the floor", torch.float32, biases=biases)
        mine = outcome(name, torch.float32, biases=biases)
        for part, *tensors in zip(("output", "gradient"), mine, exact, plain, strict=True):
            check(*tensors, f"{name}: {part}")


def seconds(batch: int, length: int, width: int, heads: int, *, backward: bool) -> dict[str, float]:
    """Median seconds of every layer."""
    torch.manual_seed(0)
    found = layers(width, heads)
    right(found, width)
    x = torch.randn(batch, length, width, requires_grad=backward)

    def timed(run: Layer) -> Callable[[], object]:
        return (lambda: run(x).sum().backward()) if backward else (lambda: run(x))

    # more rounds where one takes less time
    work = batch * length * width * (4 * width + 2 * length)
    rounds = max(3, min(500, int(6e10 / work)))
    with torch.set_grad_enabled(backward):
        return alternate({name: timed(run) for name, (_, run) in found.items()}, rounds)


def with_weights() -> list[tuple[object, ...]]:
    """Median seconds where weights are asked for, at (1, 2048, 512, 8)."""
    batch, length, width, heads = SIZES[2]
    theirs = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    ours = MultiheadAttention(width, heads, batch_first=True).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, length, width)
    short = x[:, :257]
    with torch.no_grad():
        exact = theirs.double()(*[short.double()] * 3)
        plain = theirs.float()(short, short, short)
        for part, *tensors in zip(("output", "weights"), ours(short, short, short), exact, plain, strict=True):
            check(*tensors, part)
        rivals: dict[str, Callable[[], object]] = {}
        for asked, options in (
            ("the mean of the heads", {}),
            ("each head", {"average_attn_weights": False}),
            ("none", {"need_weights": False}),
        ):
            for name, module in (("nn.MultiheadAttention", theirs), ("torch_compat", ours)):
                rivals[f"{name}: {asked}"] = lambda module=module, options=options: module(x, x, x, **options)
        times = alternate(rivals, 31)
    first = next(iter(times.values()))
    return [(name, f"{1000 * median:.1f} ms", f"{median / first:.2f} ×") for name, median in times.items()]


def memory_of_training(name: str, size: tuple[int, int, int, int]) -> int:
    """Peak bytes of forward and backward beyond the layer and its input."""
    batch, length, width, heads = size
    _, run = layers(width, heads)[name]
    run(torch.randn(1, 64, width, requires_grad=True)).sum().backward()
    x = torch.randn(batch, length, width, requires_grad=True)
    with PeakMemory() as peak:
        run(x).square().sum().backward()
    return peak.growth


def in_own_process(name: str, size: tuple[int, int, int, int]) -> int:
    """:func:`memory_of_training` in a new process, whose allocator holds nothing back from earlier work."""
    program = f"from benchmarks.layer import memory_of_training\nprint(memory_of_training({name!r}, {size}))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # libraries print what they miss
    return int(answer.stdout.split()[-1])


def memory() -> list[tuple[object, ...]]:
    """Peak of training at the longest size: the smallest of several runs, since an allocator only adds."""
    names = ("the floor", "multihead", "nn.MultiheadAttention")
    peaks = {name: min(in_own_process(name, SIZES[-1]) for _ in range(2)) for name in names}
    return [(name, f"{peak / 1e6:.0f} MB", f"{peak / peaks[names[0]]:.3f} ×") for name, peak in peaks.items()]


def tables() -> Iterator[str]:
    """Forward, forward and backward, and with weights."""
    for backward in (False, True):
        rows = []
        for size in SIZES:
            times = seconds(*size, backward=backward)
            floor = times.pop("the floor")
            rows.append((size, f"{1000 * floor:.2f} ms", *(f"{median / floor:.2f} ×" for median in times.values())))
        names = ("the floor", *times)
        title = f"The layer, float32, {'forward and backward' if backward else 'forward'}"
        yield table(title, ("batch, length, width, heads", *names), rows, "Ratios to the floor.")
    yield table(f"Memory of training, {SIZES[-1]}", ("layer", "peak beyond layer and input", "ratio"), memory())
    yield table("Weights asked for, (1, 2048, 512, 8)", ("layer: weights", "median", "ratio"), with_weights())


def run() -> str:
    """The tables."""
    return "\n".join(tables())
