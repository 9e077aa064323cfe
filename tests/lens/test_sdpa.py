"""Own code that calls F.scaled_dot_product_attention, and multihead's own attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import multihead as mh
from multihead import Statistics, masks
from multihead.core import AttentionCall, reference
from multihead.errors import CheckError, UnsupportedAttentionError
from multihead.lens import SkippedAttentionWarning, observe
from multihead.masks import SlidingWindow
from multihead.recording import load
from tests.lens.hosts import Caller, nothing_patched, observed, same, stack, whole_rows


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(batch=2, heads=6, queries=7, keys=11, dim=5, value_dim=3, kv_heads=6):
    return (
        random(batch, heads, queries, dim),
        random(batch, kv_heads, keys, dim, seed=1),
        random(batch, kv_heads, keys, value_dim, seed=2),
    )


def visible(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool)


def assert_weights(layer, q, k, v, allowed=None, bias=None, scale=None):
    call = AttentionCall(q, k, v, None if allowed is None else masks.dense(allowed), bias, scale)
    assert torch.allclose(layer.statistics.rows.double(), reference(call).weights, atol=1e-6)


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (7, 11), (11, 7), (1, 5), (5, 1)])
def test_is_causal_is_top_left(queries, keys, tmp_path):
    q, k, v = qkv(queries=queries, keys=keys)
    seen = observed(Caller(is_causal=True), q, k, v, options={"statistics": whole_rows(queries)})
    assert seen.check().passed
    (layer,) = seen.layers
    assert_weights(layer, q, k, v, visible(queries, keys).tril())
    if queries == keys:
        assert layer.mask == masks.causal()
    seen.recording().save(tmp_path / "seen.safetensors")
    again = load(tmp_path / "seen.safetensors").layers[0]
    if layer.mask is not None:
        assert torch.equal(again.mask.dense(queries, keys), layer.mask.dense(queries, keys))


MASKS = {
    "boolean": torch.rand(7, 11, generator=torch.Generator().manual_seed(3)) > 0.3,
    "per batch": torch.rand(2, 1, 7, 11, generator=torch.Generator().manual_seed(3)) > 0.3,
    "per head": torch.rand(2, 6, 7, 11, generator=torch.Generator().manual_seed(3)) > 0.3,
    "keys only": torch.rand(2, 1, 1, 11, generator=torch.Generator().manual_seed(3)) > 0.3,
    "queries only": (torch.arange(7) > 1)[:, None],
    "bottom-right": visible(7, 11).tril(4),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("numbers", ["boolean", "infinity", "lowest"])
def test_masks(mask, numbers):
    allowed = MASKS[mask]
    given = allowed
    if numbers != "boolean":
        low = -torch.inf if numbers == "infinity" else torch.finfo(torch.float32).min
        given = torch.zeros(allowed.shape).masked_fill(~allowed, low)
    q, k, v = qkv()
    seen = observed(Caller(attn_mask=given), q, k, v, options={"statistics": whole_rows(7)})
    assert seen.check().passed
    (layer,) = seen.layers
    if (mask, numbers) == ("queries only", "lowest"):
        assert torch.allclose(layer.statistics.rows[:, :, 0], torch.full((2, 6, 11), 1 / 11)), "uniform, as computed"
        return
    assert layer.bias is None
    assert_weights(layer, q, k, v, allowed)


def test_other_numbers_are_a_bias():
    q, k, v = qkv()
    bias = random(6, 7, 11, seed=5)
    seen = observed(Caller(attn_mask=bias), q, k, v, options={"statistics": whole_rows(7)})
    assert seen.check().passed
    (layer,) = seen.layers
    assert layer.mask is None
    assert torch.equal(layer.bias[0], bias)
    assert layer.bias.data_ptr() != bias.data_ptr()
    assert_weights(layer, q, k, v, bias=bias)
    some = observed(Caller(attn_mask=bias), q, k, v, options={"heads": [4, 1], "queries": [5]})
    assert torch.equal(some.layers[0].bias[0], bias[[4, 1]][:, [5]])
    assert some.check().passed


@pytest.mark.parametrize("shape", [(), (2,), (2, 6), (2, 3, 2), (2, 3, 2, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_any_number_of_axes(shape, masked):
    q, k, v = random(*shape, 7, 5), random(*shape, 11, 5, seed=1), random(*shape, 11, 3, seed=2)
    allowed = torch.rand(*shape, 7, 11, generator=torch.Generator().manual_seed(3)) > 0.3
    options = {"attn_mask": allowed} if masked else {}
    seen = observed(Caller(**options), q, k, v, options={"statistics": whole_rows(7)})
    assert seen.check().passed
    (layer,) = seen.layers
    batch = shape[0] if shape else 1
    heads = int(torch.Size(shape[1:]).numel())
    assert (layer.sizes.batch, layer.sizes.heads) == (batch, heads)
    four = [tensor.reshape(batch, heads, *tensor.shape[-2:]) for tensor in (q, k, v)]
    assert_weights(layer, *four, allowed.reshape(batch, heads, 7, 11) if masked else None)


def test_axes_that_broadcast():
    q, k, v = random(1, 6, 7, 5), random(2, 1, 11, 5, seed=1), random(2, 6, 11, 3, seed=2)
    seen = observed(Caller(), q, k, v)
    assert seen.check().passed
    assert seen.layers[0].sizes.batch == 2
    assert seen.layers[0].sizes.heads == 6


def test_a_mask_for_five_axes_that_broadcasts():
    q, k, v = random(2, 3, 2, 7, 5), random(2, 3, 2, 11, 5, seed=1), random(2, 3, 2, 11, 3, seed=2)
    for shape in ((2, 1, 1, 7, 11), (3, 1, 7, 11), (7, 11), (2, 1, 2, 7, 11)):
        allowed = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) > 0.3
        seen = observed(Caller(attn_mask=allowed), q, k, v, options={"statistics": whole_rows(7)})
        assert seen.check().passed
        whole = allowed.expand(2, 3, 2, 7, 11).flatten(1, 2)
        assert_weights(seen.layers[0], q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), whole)


def test_grouped_heads_and_scale():
    q, k, v = qkv(kv_heads=2)
    seen = observed(Caller(enable_gqa=True, scale=0.3), q, k, v, options={"statistics": whole_rows(7)})
    assert seen.check().passed
    (layer,) = seen.layers
    assert layer.k.shape == (2, 2, 11, 5)
    assert layer.scale == 0.3
    assert_weights(layer, q, k, v, scale=0.3)
    assert observed(Caller(enable_gqa=True), q, k, v, options={"heads": [5, 3, 0]}).check().passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precisions(dtype):
    q, k, v = (tensor.to(dtype) for tensor in qkv())
    seen = observed(Caller(), q, k, v)
    assert seen.check().passed
    assert seen.layers[0].q.dtype == dtype


def test_autocast_casts_what_is_measured():
    q, k, v = qkv()
    with torch.autocast("cpu", torch.bfloat16):
        seen = observed(Caller(), q, k, v)
    assert seen.check().passed
    assert seen.layers[0].q.dtype == torch.bfloat16


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"keys": 0}, {"dim": 0}], ids=str)
def test_empty_axes(sizes):
    q, k, v = qkv(**sizes)
    seen = observed(Caller(attn_mask=visible(q.shape[2], k.shape[2])), q, k, v)
    assert seen.check().passed


def test_positional_arguments_and_the_operator_itself():
    class Positional(nn.Module):
        def forward(self, q, k, v):
            first = F.scaled_dot_product_attention(q, k, v, None, 0.0, True)
            return first, torch.ops.aten.scaled_dot_product_attention(q, k, v, is_causal=True)

    q, k, v = qkv(queries=7, keys=7)
    seen = observed(Positional(), q, k, v)
    assert seen.check().passed
    assert [layer.mask for layer in seen.layers] == [masks.causal()] * 2
    assert [layer.index for layer in seen.layers] == [0, 1]


def test_dropout_is_measured_but_not_compared():
    q, k, v = qkv()
    seen = observed(Caller(dropout_p=0.5), q, k, v, options={"statistics": whole_rows(7)})
    assert_weights(seen.layers[0], q, k, v)
    with pytest.raises(CheckError, match=r"not compared, dropout was on, so the host's output is not Σ P v"):
        seen.check()


def test_without_verify_the_check_says_what_to_do():
    seen = observed(Caller(), *qkv(), options={"verify": False, "qk": False})
    with pytest.raises(CheckError, match="not compared, verify was False: observe with verify=True"):
        seen.check()
    assert seen.layers[0].q is None


@pytest.mark.parametrize("damage", ["heads", "mask", "scale", "nothing"])
def test_the_check_can_fail(damage, monkeypatch):
    from dataclasses import replace

    from multihead.lens.adapters import sdpa

    def damaged(q, k, v, **rest):
        call = plain(q, k, v, **rest)
        wrong = {"heads": {"q": q.roll(1, 1)}, "mask": {"mask": SlidingWindow(None, 1)}, "scale": {"scale": 1.0}}
        return replace(call, **wrong.get(damage, {}))

    plain = sdpa.call_of
    monkeypatch.setattr(sdpa, "call_of", damaged)
    seen = observed(Caller(is_causal=True), *qkv(keys=7))
    if damage == "nothing":
        assert str(seen.check()).startswith("layer 0 (the model itself): agrees, largest difference")
    else:
        with pytest.raises(
            CheckError, match=r"1 of 1 layers do not agree with the output of Caller:\n  layer 0 .*DIFFERS"
        ):
            seen.check()


def test_nan_in_the_host_is_a_difference():
    from multihead.lens.measuring import largest_difference

    good, bad = torch.ones(3), torch.tensor([1.0, torch.nan, 1.0])
    assert largest_difference(good, bad) == torch.inf
    assert largest_difference(bad, good) == torch.inf
    assert largest_difference(bad, bad) == 0
    assert largest_difference(good, bad, torch.tensor([False, True, False])) == 0
    assert largest_difference(good, good + 0.5) == 0.5


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: [torch.nested.nested_tensor([random(2, 7, 5), random(2, 3, 5)])] * 3, "a nested tensor"),
        (lambda: [torch.zeros(2, 3, 7, 5, device="meta")] * 3, "on the meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_cannot_be_measured(make, reason):
    model = Caller()
    given = make()
    with (
        pytest.raises(UnsupportedAttentionError, match=f"layer 0 .* cannot be observed: its query is {reason}"),
        observe(model),
    ):
        model(*given)
    assert nothing_patched()
    with pytest.warns(SkippedAttentionWarning, match="left out"), observe(model, unsupported="skip"):
        during = model(*given)
    if not during.is_meta:
        assert same(during, model(*given))


def test_vmap_is_refused():
    model = Caller()
    q, k, v = (tensor[None].expand(3, -1, -1, -1, -1) for tensor in qkv())
    with pytest.raises(UnsupportedAttentionError, match=r"torch.vmap"), observe(model):
        torch.vmap(model)(q, k, v)
    assert nothing_patched()


def test_operators_that_nobody_understands():
    class Own(nn.Module):
        def forward(self, q):
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0]

    model, q = Own(), random(2, 3, 7, 5)
    with (
        pytest.raises(UnsupportedAttentionError, match="_scaled_dot_product_flash_attention_for_cpu, of which"),
        observe(model),
    ):
        model(q)
    with pytest.warns(SkippedAttentionWarning), observe(model, unsupported="skip"):
        assert same(model(q), Own()(q))
    assert nothing_patched()


def test_jit_tracing_is_refused():
    model = Caller()
    with (
        pytest.raises(UnsupportedAttentionError, match="being traced"),
        observe(model),
        pytest.warns(DeprecationWarning, match="torch.jit"),
    ):
        torch.jit.trace(model, qkv())
    assert nothing_patched()


class Ours(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, q, k, v):
        return mh.attention(q, k, v, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": masks.causal()},
        {"mask": masks.causal() & masks.padding(torch.arange(11) > 2)},
        {"mask": MASKS["per head"][:, :, :, :]},
        {"softcap": 2.0, "sinks": random(6, seed=8), "scale": 0.4, "bias": random(6, 7, 11, seed=9)},
    ],
    ids=["plain", "causal", "padding", "dense", "everything"],
)
@pytest.mark.parametrize("heads", [None, [4, 1]])
def test_our_own_attention(options, heads):
    q, k, v = qkv(kv_heads=2)
    seen = observed(
        Ours(**options), q, k, v, options={"statistics": Statistics(rows=(2, 3), sink=True), "heads": heads}
    )
    assert seen.check().passed
    (layer,) = seen.layers
    assert layer.host == "multihead"
    mask = options.get("mask")
    mask = masks.dense(mask) if isinstance(mask, torch.Tensor) else mask
    exact = reference(AttentionCall(q, k, v, **(options | {"mask": mask})))
    chosen = heads or list(range(6))
    assert torch.allclose(layer.statistics.rows.double(), exact.weights[:, chosen][:, :, [2, 3]], atol=1e-6)
    assert torch.allclose(layer.statistics.sink.double(), exact.sink[:, chosen], atol=1e-6)


def test_our_own_layer():
    layer = mh.MultiHeadAttention(30, num_heads=6, num_kv_heads=2)
    model = nn.Sequential(layer, nn.LayerNorm(30))
    seen = observed(model, random(2, 7, 30))
    assert seen.check().passed
    assert [(found.host, found.name) for found in seen.layers] == [("multihead", "0")]
    seen = observed(layer, random(2, 7, 30), random(2, 11, 30, seed=1), grad=True)
    assert seen.check().passed
    assert seen.layers[0].sizes.keys == 11


def test_time_and_memory_fall_with_the_selection():
    """Only what is chosen is kept; what is measured is asked of the kernel for the chosen heads and queries alone."""
    from multihead.lens import measuring

    asked = []
    plain = measuring.measure

    def spy(call, statistics, *, queries=None, output=False):
        asked.append((call.q.shape[1], call.k.shape[1], call.q.shape[2] if queries is None else len(queries)))
        return plain(call, statistics, queries=queries, output=output)

    measuring.measure = spy
    try:
        seen = observed(stack(3), random(2, 11, 14), options={"layers": [2], "heads": [1, 5], "queries": [4]})
    finally:
        measuring.measure = plain
    assert asked == [(2, 2, 1)]
    assert seen.layers[0].q.shape == (2, 2, 1, 2)
    assert seen.layers[0].k.shape == (2, 2, 11, 2)
