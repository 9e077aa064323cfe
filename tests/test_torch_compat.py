"""Our drop-in beside torch's own module, over its options, and its wounds healed."""

import itertools

import pytest
import torch
from torch import nn

from multihead.torch_compat import MultiheadAttention
from tests.accuracy import random_bool

N, L, S, E, H = 2, 7, 11, 12, 3

OPTIONS = [
    dict(zip(("bias", "add_bias_kv", "add_zero_attn", "batch_first", "other_dims"), values, strict=True))
    for values in itertools.product([True, False], repeat=5)
]


def pair(**options):
    """Torch's layer and ours with the same parameters."""
    dims = {"kdim": 5, "vdim": 13} if options.pop("other_dims", False) else {}
    theirs = nn.MultiheadAttention(E, H, **dims, **options)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.5)
    ours = MultiheadAttention(E, H, **dims, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tensors(layer):
    shapes = ((L, E), (S, layer.kdim), (S, layer.vdim))
    return [torch.randn(N, *shape) if layer.batch_first else torch.randn(shape[0], N, shape[1]) for shape in shapes]


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.arange(S).expand(N, S) >= torch.tensor([[8], [11]])},
    "boolean": {"attn_mask": ~(random_bool(L, S, seed=7) | (torch.arange(S) == 0))},
    "float": {"attn_mask": torch.randn(L, S, generator=torch.Generator().manual_seed(1))},
    "per head": {"attn_mask": ~(random_bool(N * H, L, S, seed=8) | (torch.arange(S) == 0))},
    "both": {
        "key_padding_mask": torch.arange(S).expand(N, S) >= 9,
        "attn_mask": ~(random_bool(L, S, seed=9) | (torch.arange(S) == 0)),
    },
    "both float": {"key_padding_mask": torch.randn(N, S), "attn_mask": torch.randn(L, S)},
}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(k for k, v in o.items() if v) or "bare")
@pytest.mark.parametrize("masked", MASKS.values(), ids=MASKS)
def test_equals_torch(options, masked):
    theirs, ours = pair(**options)
    query, key, value = tensors(theirs)
    for flags in ({"need_weights": False}, {"average_attn_weights": True}, {"average_attn_weights": False}):
        expected, expected_weights = theirs(query, key, value, **masked, **flags)
        output, weights = ours(query, key, value, **masked, **flags)
        torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)
        if expected_weights is None:
            assert weights is None
        else:
            torch.testing.assert_close(weights, expected_weights, atol=2e-6, rtol=1e-5)


def test_the_comparison_would_notice_swapped_heads():
    theirs, ours = pair()
    query, key, value = tensors(theirs)
    with torch.no_grad():
        ours.in_proj_weight[:4], ours.in_proj_weight[4:8] = (
            ours.in_proj_weight[4:8].clone(),
            ours.in_proj_weight[:4].clone(),
        )
    assert not torch.allclose(ours(query, key, value)[0], theirs(query, key, value)[0], atol=1e-3)


def test_same_seed_same_layer_same_state_dict():
    for options in ({}, {"kdim": 5, "vdim": 7}, {"bias": False}, {"add_bias_kv": True}):
        torch.manual_seed(5)
        theirs = nn.MultiheadAttention(E, H, **options).state_dict()
        torch.manual_seed(5)
        ours = MultiheadAttention(E, H, **options).state_dict()
        assert list(theirs) == list(ours)
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_unbatched_and_gradients():
    theirs, ours = (layer.double() for layer in pair())
    for shape in ((L, E), (L, N, E)):
        x = torch.randn(*shape, dtype=torch.float64)
        for flag in (True, False):
            expected, output = theirs(x, x, x, need_weights=flag), ours(x, x, x, need_weights=flag)
            torch.testing.assert_close(output, expected)
            for layer, result in ((theirs, expected), (ours, output)):
                layer.zero_grad()
                (result[0].square().sum() + (result[1].square().sum() if flag else 0)).backward()
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, other.grad)


def test_weights_are_those_before_dropout():
    """pytorch#33360, #90842: torch's rows do not sum to 1."""
    theirs, ours = nn.MultiheadAttention(E, H, dropout=0.5), MultiheadAttention(E, H, dropout=0.5)
    x = torch.randn(L, N, E)
    assert not torch.allclose(theirs(x, x, x)[1].sum(-1), torch.ones(N, L))
    torch.testing.assert_close(ours(x, x, x)[1].sum(-1), torch.ones(N, L))


def test_a_row_that_sees_nothing_is_zero_with_and_without_weights():
    """pytorch#41508, #160064, #152028."""
    theirs, ours = pair()
    x = torch.randn(L, N, E, requires_grad=True)
    hidden = torch.zeros(N, L, dtype=torch.bool)
    hidden[1] = True
    assert theirs(x, x, x, key_padding_mask=hidden)[0].isnan().any()
    outputs = [ours(x, x, x, key_padding_mask=hidden, need_weights=flag) for flag in (True, False)]
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    assert not outputs[0][1][1].any()
    outputs[0][0].sum().backward()
    assert x.grad.isfinite().all()


def test_causal_needs_no_mask_and_keeps_to_the_end():
    """pytorch#172338, #108108: torch demands a mask, and aligns top-left."""
    theirs, ours = pair()
    query, key, value = tensors(theirs)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        theirs(query, key, value, is_causal=True)
    weights = ours(query, key, value, is_causal=True)[1]
    assert not weights[:, 0, S - L + 1 :].any()
    assert (weights[:, -1] > 0).all()


def test_zero_attention_does_not_break_causality():
    """pytorch#27461."""
    ours = MultiheadAttention(E, H, add_zero_attn=True, add_bias_kv=True)
    x = torch.randn(L, N, E)
    weights = ours(x, x, x, is_causal=True)[1]
    assert weights.shape == (N, L, L + 2)
    assert not weights[:, :, :L].triu(1).any()
    assert (weights[:, :, L:] > 0).all()


def test_hooks_on_out_proj_fire():
    """pytorch#78109."""
    fired = {}
    for name, layer in zip(("theirs", "ours"), pair(), strict=True):
        layer.out_proj.register_forward_hook(lambda *_, name=name: fired.update({name: True}))
        x = torch.randn(L, N, E)
        layer(x, x, x)
    assert fired == {"ours": True}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda layer: MultiheadAttention(64, 12),
            "num_heads is 12, expected a divisor of embed_dim=64: try 1, 2, 4, 8",
        ),
        (lambda layer: layer(*[torch.zeros(2, 3, 4, 12)] * 3), "query has shape .* expected three axes"),
        (
            lambda layer: layer(*[torch.zeros(7, 2, 12)] * 3, key_padding_mask=torch.zeros(2, 8, dtype=torch.bool)),
            r"key_padding_mask has shape \(2, 8\), expected \(batch, keys\) = \(2, 7\)",
        ),
        (
            lambda layer: layer(*[torch.zeros(7, 2, 12)] * 3, attn_mask=torch.zeros(8, 7, dtype=torch.bool)),
            r"attn_mask has shape \(8, 7\)",
        ),
        (
            lambda layer: layer(*[torch.zeros(7, 2, 12)] * 3, attn_mask=torch.zeros(5, 7, 7, dtype=torch.bool)),
            r"attn_mask has shape \(5, 7, 7\)",
        ),
    ],
)
def test_refuses_with_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make(MultiheadAttention(E, H))
