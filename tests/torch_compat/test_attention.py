"""Our drop-in beside torch's own module, over every combination of its options."""

import inspect
import itertools

import pytest
import torch
from torch import nn

from multihead.core import reference
from multihead.torch_compat import MultiheadAttention
from tests.accuracy import check
from tests.torch_compat.pairs import OTHER_DIMS, E, H, L, N, S, check_same, inputs, pair, some_seen

NAMES = ("bias", "add_bias_kv", "add_zero_attn", "batch_first", "other_dims")
OPTIONS = [dict(zip(NAMES, values, strict=True)) for values in itertools.product([True, False], repeat=5)]

PADDING = torch.arange(S) >= torch.tensor([[8], [11]])
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "boolean": {"attn_mask": some_seen(L, S, seed=7)},
    "float": {"attn_mask": torch.randn(L, S, generator=torch.Generator().manual_seed(1))},
    "per head": {"attn_mask": some_seen(N * H, L, S, seed=8)},
    "both": {"key_padding_mask": PADDING, "attn_mask": some_seen(L, S, seed=9)},
    "both float": {
        "key_padding_mask": torch.randn(N, S, generator=torch.Generator().manual_seed(2)),
        "attn_mask": torch.randn(N * H, L, S, generator=torch.Generator().manual_seed(3)),
    },
    "0 and -inf": {
        "key_padding_mask": torch.zeros(N, S).masked_fill(PADDING, -torch.inf),
        "attn_mask": torch.zeros(L, S).masked_fill(some_seen(L, S, seed=9), -torch.inf),
    },
    "numbers and -inf": {
        "attn_mask": torch.randn(L, S, generator=torch.Generator().manual_seed(4)).masked_fill(
            some_seen(L, S, seed=5), -torch.inf
        )
    },
}
FLAGS = ({"need_weights": False}, {"average_attn_weights": True}, {"average_attn_weights": False})


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(k for k, v in o.items() if v) or "bare")
def test_equals_torch(options):
    """Output, weights of every head and the gradients through both, for every mask; the output is always the same."""
    options = dict(options)
    dims = OTHER_DIMS if options.pop("other_dims") else {}
    theirs, ours = pair(**options, **dims)
    tensors = inputs(theirs)
    for masked in MASKS.values():
        check_same(theirs, ours, tensors, **masked, average_attn_weights=False)
        output, weights = ours(*tensors, **masked, average_attn_weights=False)
        mean = ours(*tensors, **masked)
        assert torch.equal(mean[0], output)
        assert torch.equal(mean[1], weights.mean(1))
        without = ours(*tensors, **masked, need_weights=False)
        assert torch.equal(without[0], output)
        assert without[1] is None
        with torch.no_grad():
            torch.testing.assert_close(ours(*tensors, **masked), mean)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("flags", FLAGS, ids=["no weights", "mean weights", "weights"])
@pytest.mark.parametrize("bias", [True, False])
class TestSameTensors:
    """The same tensor in two places is projected once; it must not matter."""

    def test_self_attention(self, flags, bias, batch_first):
        theirs, ours = pair(bias=bias, batch_first=batch_first)
        query, _, _ = inputs(theirs)
        square = {"attn_mask": some_seen(L, L, seed=3)}
        for masked in ({}, square, square | {"is_causal": False}):
            check_same(theirs, ours, (query,), **masked, **flags)

    def test_cross_attention(self, flags, bias, batch_first):
        theirs, ours = pair(bias=bias, batch_first=batch_first)
        query, key, _ = inputs(theirs)
        check_same(theirs, ours, (query, key), **flags)

    def test_queries_that_are_keys_but_not_values(self, flags, bias, batch_first):
        """Positions are often added to queries and keys only (Carion et al. 2020)."""
        theirs, ours = pair(bias=bias, batch_first=batch_first)
        query, _, _ = inputs(theirs)
        value = torch.randn_like(query)
        torch.testing.assert_close(ours(query, query, value, **flags), theirs(query, query, value, **flags))

    def test_a_true_hint_changes_nothing(self, flags, bias, batch_first):
        theirs, ours = pair(bias=bias, batch_first=batch_first)
        query, _, _ = inputs(theirs)
        causal = nn.Transformer.generate_square_subsequent_mask(L)
        if flags.get("need_weights", True):
            check_same(theirs, ours, (query,), attn_mask=causal, is_causal=True, **flags)
        output = ours(query, query, query, attn_mask=causal, is_causal=True, **flags)[0]
        assert torch.equal(output, ours(query, query, query, attn_mask=causal, **flags)[0])


@pytest.mark.parametrize("flags", FLAGS, ids=["no weights", "mean weights", "weights"])
def test_a_single_sequence(flags):
    for options in ({}, {"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True, **OTHER_DIMS}):
        theirs, ours = pair(**options)
        for masked in (
            {},
            {"key_padding_mask": PADDING[0]},
            {"attn_mask": some_seen(L, S, seed=7)},
            {"attn_mask": some_seen(H, L, S, seed=8)},
        ):
            check_same(theirs, ours, inputs(theirs, batch=None), **masked, **flags)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_mask_that_learns(hidden):
    """A float mask is a bias with a gradient; where it is -inf the gradient is 0."""
    theirs, ours = pair()
    tensors, found = inputs(theirs), []
    start = MASKS["numbers and -inf" if hidden else "float"]["attn_mask"]
    for module in (theirs, ours):
        mask = start.clone().requires_grad_()
        output, weights = module(*tensors, attn_mask=mask)
        (output.square().sum() + weights.square().sum()).backward()
        found.append(mask.grad)
    torch.testing.assert_close(found[1], found[0])
    assert bool(found[1][start.isneginf()].any()) is False
    assert found[1][start.isfinite()].any()


def test_equals_torchs_fast_path():
    """In evaluation torch computes the module in one operator, where it can."""
    theirs, ours = pair(14, 2, batch_first=True)
    theirs.eval(), ours.eval()
    x = torch.randn(N, L, 14)
    with torch.no_grad():
        for masked in ({}, {"key_padding_mask": PADDING[:, 2 : L + 2]}, {"attn_mask": some_seen(L, L, seed=7)}):
            for flags in FLAGS:
                torch.testing.assert_close(ours(x, x, x, **masked, **flags), theirs(x, x, x, **masked, **flags))


@pytest.mark.parametrize("change", ["heads", "scale", "mask", "key", "weights"])
def test_the_comparison_would_notice(change, monkeypatch):
    """Swapped heads, another scale, a shifted mask, a wrong key gradient, weights of the other head."""
    theirs, ours = pair()
    tensors, masked = inputs(theirs), dict(MASKS["boolean"])
    check_same(theirs, ours, tensors, **masked, average_attn_weights=False)
    forward = ours.forward
    if change == "heads":
        with torch.no_grad():
            first, second = ours.in_proj_weight[:5].clone(), ours.in_proj_weight[5:10].clone()
            ours.in_proj_weight[:5], ours.in_proj_weight[5:10] = second, first
    elif change == "scale":
        with torch.no_grad():
            ours.in_proj_weight[:E] *= 1.001
    elif change == "mask":
        monkeypatch.setattr(
            ours, "forward", lambda *a, attn_mask, **k: forward(*a, attn_mask=attn_mask.roll(1, 0), **k)
        )
    elif change == "key":
        monkeypatch.setattr(ours, "forward", lambda q, k, v, **o: forward(q, k.detach() + 0 * k, v, **o))
    else:

        def swapped(*args, **kwargs):
            output, weights = forward(*args, **kwargs)
            return output, weights.flip(1)

        monkeypatch.setattr(ours, "forward", swapped)
    with pytest.raises(AssertionError, match=r"error .* allowed"):
        check_same(theirs, ours, tensors, **masked, average_attn_weights=False)


def test_the_signature_is_torchs():
    for name in ("__init__", "forward"):
        own, torchs = (
            inspect.signature(getattr(kind, name)).parameters for kind in (MultiheadAttention, nn.MultiheadAttention)
        )
        assert [(p.name, p.default, p.kind) for p in own.values()] == [
            (p.name, p.default, p.kind) for p in torchs.values()
        ]


def test_outputs_lie_in_memory_as_torchs_do():
    """People call ``.view`` on them."""
    for options in ({}, {"add_zero_attn": True}, {"batch_first": True}):
        _, ours = pair(**options)
        for average in (True, False):
            output, weights = ours(*inputs(ours), average_attn_weights=average)
            assert output.is_contiguous()
            assert weights.is_contiguous()


def test_dtypes_are_those_of_the_query():
    for dtype in (torch.float64, torch.bfloat16):
        ours = MultiheadAttention(E, H, dtype=dtype)
        x = torch.randn(L, N, E, dtype=dtype)
        assert {tensor.dtype for tensor in ours(x, x, x)} == {dtype}


def test_under_autocast():
    """Outputs are torch's to bfloat16's precision; weights are those of the rounded queries and keys, in float32."""
    for dims in ({}, OTHER_DIMS):
        theirs, ours = pair(add_bias_kv=True, **dims)
        tensors, calls = inputs(theirs), []
        ours.attend.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(args[0]))
        with torch.autocast("cpu", torch.bfloat16):
            expected, (output, weights) = theirs(*tensors), ours(*tensors)
        assert output.dtype == expected[0].dtype == torch.bfloat16
        assert weights.dtype == torch.float32
        exact = theirs(*tensors)[0]
        error = (output.float() - exact).abs().max()
        assert 0 < error <= 2 * (expected[0].float() - exact).abs().max() + 0.01
        exact, plain = (
            reference(calls[0], kind).weights.roll(-1, -1).mean(1) for kind in (torch.float64, torch.float32)
        )
        assert calls[0].q.dtype == torch.bfloat16
        check(weights, exact, plain)


@pytest.mark.parametrize("need_weights", [True, False])
def test_no_tokens(need_weights):
    """An empty batch, no queries, no keys: a query that sees no key gets zeros, and out_proj's bias after them."""
    for options in ({}, OTHER_DIMS):
        _, ours = pair(batch_first=True, **options)
        for sizes in ({"batch": 0}, {"queries": 0}, {"keys": 0}):
            tensors = [tensor.requires_grad_() for tensor in inputs(ours, **sizes)]
            output, weights = ours(*tensors, need_weights=need_weights)
            batch, queries, keys = ({"batch": N, "queries": L, "keys": S} | sizes).values()
            assert output.shape == (batch, queries, E)
            assert weights is None if not need_weights else weights.shape == (batch, queries, keys)
            if sizes == {"keys": 0}:
                torch.testing.assert_close(output, ours.out_proj.bias.expand_as(output))
            output.sum().backward()
            assert all(tensor.grad.isfinite().all() for tensor in tensors)


def test_causal_over_no_tokens():
    _, ours = pair()
    query, key, value = inputs(ours, queries=0)
    assert ours(query, key, value, is_causal=True)[1].shape == (N, 0, S)


class TestRefusals:
    """What does not fit is named, with what was expected."""

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ((64, 12), ValueError, "num_heads is 12, expected a divisor of embed_dim=64: try 1, 2, 4, 8"),
            ((64, 8.0), TypeError, "num_heads=8.0 is a float, expected a whole number"),
            ((True, True), TypeError, "embed_dim=True is a bool, expected a whole number"),
            ((0, 1), ValueError, "embed_dim=0 is too small"),
            ((8, 0), ValueError, "num_heads=0 is too small"),
            ((8, 2, 1.0), ValueError, "dropout=1.0 is no probability below 1"),
            ((8, 2, -0.1), ValueError, "dropout=-0.1 is no probability below 1"),
            ((8, 2, "0.1"), TypeError, "dropout is a str, expected a number"),
            ((8, 2, 0.0, True, False, False, 0), ValueError, "kdim=0 is too small"),
            ((8, 2, 0.0, True, False, False, None, 7.0), TypeError, "vdim=7.0 is a float"),
        ],
    )
    def test_at_construction(self, as_users_run, arguments, kind, message):
        with pytest.raises(kind, match=message):
            MultiheadAttention(*arguments)

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (
                [(2, 3, 4, E)] * 3,
                r"query has shape \(2, 3, 4, 15\), expected \(tokens, batch, embed_dim=15\) or, for a",
            ),
            (
                [(L, N, 14), (S, N, 13), (S, N, 17)],
                r"query has shape \(7, 2, 14\), expected \(tokens, batch, embed_dim=15",
            ),
            ([(L, N, E), (S, N, E), (S, N, 17)], r"key has shape \(11, 2, 15\), expected \(tokens, batch, kdim=13\)"),
            (
                [(L, N, E), (S, N, 13), (S, N, 13)],
                r"value has shape \(11, 2, 13\), expected \(tokens, batch, vdim=17\)",
            ),
            (
                [(L, N, E), (S, 13), (S, 17)],
                r"key has shape \(11, 13\) but query has \(7, 2, 15\): either all have a batch",
            ),
            ([(L, N, E), (S, N, 13), (S + 2, N, 17)], r"key has shape .* but value has .* each key needs its value"),
            ([(L, N, E), (S, 3, 13), (S, 3, 17)], r"query has batch 2 but key has 3: .* with batch_first=False"),
        ],
    )
    def test_shapes(self, shapes, message):
        with pytest.raises(ValueError, match=message):
            MultiheadAttention(E, H, **OTHER_DIMS)(*(torch.zeros(shape) for shape in shapes))

    def test_what_is_no_tensor(self, as_users_run):
        x = torch.zeros(L, N, E)
        with pytest.raises(TypeError, match="key is None, expected a tensor"):
            MultiheadAttention(E, H)(x, None, x)
        with pytest.raises(TypeError, match="attn_mask is a list, expected a boolean tensor, True where a query must"):
            MultiheadAttention(E, H)(x, x, x, attn_mask=[True])

    def test_nested_tensors(self):
        nested = torch.nested.nested_tensor([torch.zeros(3, E), torch.zeros(5, E)])
        with pytest.raises(ValueError, match="query is a nested tensor: pad it and pass key_padding_mask"):
            MultiheadAttention(E, H, batch_first=True)(nested, nested, nested)

    @pytest.mark.parametrize(
        ("shape", "name", "message"),
        [
            ((2, 8), "key_padding_mask", r"has shape \(2, 8\), expected \(batch, keys\) = \(2, 7\)"),
            ((7,), "key_padding_mask", r"has shape \(7\), expected \(batch, keys\) = \(2, 7\)"),
            ((8, 7), "attn_mask", r"has shape \(8, 7\), expected \(queries, keys\) = \(7, 7\) or \(batch · num_heads"),
            ((5, 7, 7), "attn_mask", r"has shape \(5, 7, 7\), expected .* = \(6, 7, 7\)"),
            ((2, 3, 7, 7), "attn_mask", r"has shape \(2, 3, 7, 7\)"),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
    def test_masks(self, shape, name, message, dtype):
        x = torch.zeros(L, N, E)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            MultiheadAttention(E, H)(x, x, x, **{name: torch.zeros(shape, dtype=dtype)})

    def test_masks_of_a_single_sequence(self):
        x = torch.zeros(L, E)
        with pytest.raises(
            ValueError, match=r"key_padding_mask has shape \(1, 7\), expected \(keys,\) = \(7,\), as query"
        ):
            MultiheadAttention(E, H)(x, x, x, key_padding_mask=torch.zeros(1, L, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"attn_mask has shape \(2, 7, 7\), .* = \(3, 7, 7\)"):
            MultiheadAttention(E, H)(x, x, x, attn_mask=torch.zeros(2, L, L, dtype=torch.bool))
