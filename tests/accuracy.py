"""The one error bar of every comparison, and the calls and masks that the comparisons run over.

A result is right if its error against the float64 formula is at most twice that of a plain PyTorch run in the
result's own precision, plus four roundings of the largest number (at sizes this small a plain run is now and then exact
by luck). ``test_accuracy.py`` holds the negative controls.
"""

import torch
from torch import Tensor

from multihead import masks
from multihead.core import AttentionCall, reference


def check(found: Tensor, exact: Tensor, plain: Tensor, name: str = "result") -> None:
    """Assert that ``found`` passes the bar; ``exact`` is float64, ``plain`` the simple way in found's precision."""
    assert found.shape == exact.shape == plain.shape, f"{name}: shapes {found.shape}, {exact.shape}, {plain.shape}"
    infinite = exact.isinf()
    assert torch.equal(found.isinf(), infinite), f"{name}: infinities differ"
    assert torch.equal(found[infinite].double(), exact[infinite]), f"{name}: infinities differ in sign"
    assert not found.isnan().any(), f"{name}: NaN"
    if not found.numel() or infinite.all():
        return
    exact, mine, theirs = (tensor.masked_fill(infinite, 0.0).double() for tensor in (exact, found, plain))
    rounding = 4 * torch.finfo(found.dtype).eps * max(1.0, exact.abs().max().item())
    allowed = 2 * (theirs - exact).abs().max().item() + rounding
    error = (mine - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def plain(call: AttentionCall):
    """The formula in the precision a kernel works in, for calibration."""
    return reference(call, call.q.dtype)


SIZES = {"batch": 2, "heads": 6, "kv_heads": 3, "queries": 7, "keys": 11, "dim": 5, "value_dim": 13}
"""Distinct, and prime but for the heads, so that no swapped axis goes unseen."""


def random_call(
    dtype: torch.dtype = torch.float32, *, seed: int = 0, requires_grad: bool = False, **options
) -> AttentionCall:
    """A call of the standard sizes; ``options`` are the call's, True standing for a random bias or sinks."""
    sizes = SIZES | {name: options.pop(name) for name in list(options) if name in SIZES}
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_(requires_grad)

    batch, heads, kv_heads, queries, keys = (sizes[name] for name in ("batch", "heads", "kv_heads", "queries", "keys"))
    q = random(batch, heads, queries, sizes["dim"])
    k, v = random(batch, kv_heads, keys, sizes["dim"]), random(batch, kv_heads, keys, sizes["value_dim"])
    if options.get("bias") is True:
        options["bias"] = random(1, heads, queries, keys)
    if options.get("sinks") is True:
        options["sinks"] = random(heads)
    return AttentionCall(q, k, v, **options)


def random_bool(*shape: int, seed: int = 0, share: float = 0.6) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def mask_examples(queries: int = SIZES["queries"], keys: int = SIZES["keys"], batch: int = 2, heads: int = 6) -> dict:
    """One of each kind of mask, and combinations; some leave rows that see nothing."""
    query_documents = torch.arange(queries) // 3
    key_documents = torch.arange(keys) // 4
    return {
        "none": None,
        "causal": masks.causal(),
        "window": masks.sliding_window(3),
        "two-sided window": masks.sliding_window(left=1, right=2),
        "padding": masks.padding(random_bool(batch, keys, seed=1)),
        "documents": masks.documents(query_documents, key_documents),
        "prefix": masks.prefix(4),
        "dense": masks.dense(random_bool(queries, keys, seed=2)),
        "dense per head": masks.dense(random_bool(batch, heads, queries, keys, seed=3)),
        "causal padding": masks.causal() & masks.padding(random_bool(batch, keys, seed=4)),
        "prefix model": masks.causal() | masks.prefix(3),
        "not causal": ~masks.causal(),
        "nothing": masks.prefix(0),
        "tree": ~(masks.causal() & masks.sliding_window(2))
        | masks.padding(random_bool(batch, keys, seed=5, share=0.3)),
    }


OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 1.5},
    "bias": {"bias": True},
    "sinks": {"sinks": True},
    "scale": {"scale": 0.37},
    "all": {"softcap": 2.0, "bias": True, "sinks": True, "scale": 0.7},
}
