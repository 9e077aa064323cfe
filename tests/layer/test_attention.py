"""The layer against the formula, its shapes and its refusals."""

import copy
import pickle

import pytest
import torch
from torch import nn

import multihead as mh
from multihead.core import AttentionCall, merge_heads, reference, split_heads
from multihead.layer import Attend
from tests.accuracy import check, random_bool


def by_formula(layer, x, context, mask, dtype):
    """The layer written out: projections, the reference, projection."""
    layer = copy.deepcopy(layer).to(dtype)
    x, context = x.to(dtype), context.to(dtype)
    q = split_heads(layer.q_proj(x), layer.num_heads)
    k, v = (split_heads(projection(context), layer.num_kv_heads) for projection in (layer.k_proj, layer.v_proj))
    sinks = None if layer.sinks is None else layer.sinks
    call = AttentionCall(q, k, v, mask=mask, scale=layer.scale, softcap=layer.softcap, sinks=sinks)
    return layer.out_proj(merge_heads(reference(call, dtype).output))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_kv_heads": 3},
        {"num_kv_heads": 1, "head_dim": 5},
        {"bias": False},
        {"softcap": 2.0, "sinks": True},
        {"scale": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "mask", [None, mh.masks.causal(), mh.masks.padding(random_bool(2, 11))], ids=["none", "causal", "padding"]
)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_equals_the_formula(options, mask, cross):
    layer = mh.MultiHeadAttention(42, 6, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    x = torch.randn(2, 7 if cross else 11, 42)
    context = torch.randn(2, 11, 42)
    found = layer(x, context, mask=mask) if cross else layer(x, mask=mask)
    exact, simple = (
        by_formula(layer, x, context if cross else x, mask, dtype) for dtype in (torch.float64, torch.float32)
    )
    check(found, exact, simple)


def test_the_three_calls_of_the_readme():
    attn = mh.MultiHeadAttention(64, num_heads=8)
    x, context = torch.randn(2, 10, 64), torch.randn(2, 13, 64)
    assert attn(x).shape == attn(x, context).shape == attn(x, mask=mh.masks.causal()).shape == (2, 10, 64)
    # an early token cannot depend on a later one
    changed = x.clone()
    changed[:, 5:] += 1
    torch.testing.assert_close(attn(x, mask=mh.masks.causal())[:, :5], attn(changed, mask=mh.masks.causal())[:, :5])
    assert not torch.allclose(attn(x)[:, :5], attn(changed)[:, :5])


def test_every_projection_is_called_as_a_module():
    """pytorch#78109: hooks, and so LoRA, quantisation and pruning, work on each of them."""
    layer = mh.MultiHeadAttention(24, 3)
    called = []
    for name, module in layer.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
    layer(torch.randn(2, 5, 24))
    assert called == ["q_proj", "k_proj", "v_proj", "attend", "out_proj"]
    assert isinstance(layer.attend, Attend)
    assert not list(layer.attend.parameters())


def test_same_numbers_in_train_and_eval_and_with_other_threads_of_thought():
    layer = mh.MultiHeadAttention(24, 3)
    x = torch.randn(2, 5, 24)
    expected = layer.train()(x)
    assert torch.equal(layer.eval()(x), expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


def test_dropout_works_while_training_only():
    layer = mh.MultiHeadAttention(24, 3, dropout=0.5)
    x = torch.randn(2, 5, 24)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_rows_that_see_nothing_give_the_output_bias_and_no_nan():
    """pytorch#41508."""
    layer = mh.MultiHeadAttention(24, 3)
    nn.init.ones_(layer.out_proj.bias)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1] = False
    x = torch.randn(2, 5, 24, requires_grad=True)
    output = layer(x, mask=mh.masks.padding(valid))
    assert torch.equal(output[1], torch.ones(5, 24))
    output.sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()


def test_copies_and_pickles():
    layer = mh.MultiHeadAttention(24, 3, num_kv_heads=1, sinks=True)
    x = torch.randn(2, 5, 24)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_prints_its_sizes():
    assert "embed_dim=24, num_heads=6, num_kv_heads=2, head_dim=4" in repr(mh.MultiHeadAttention(24, 6, num_kv_heads=2))
    assert "num_kv_heads" not in repr(mh.MultiHeadAttention(24, 6))


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: mh.MultiHeadAttention(64, 12),
            "embed_dim=64 does not split into num_heads=12: try 1, 2, 4, 8, 16, 32 or 64 heads, or give head_dim",
        ),
        (
            lambda: mh.MultiHeadAttention(60, 12, num_kv_heads=5),
            "num_heads=12 is not a multiple of num_kv_heads=5.*try 1, 2, 3, 4, 6 or 12",
        ),
        (lambda: mh.MultiHeadAttention(0, 1), "embed_dim is 0, expected a positive number"),
        (lambda: mh.MultiHeadAttention(64, -8), "num_heads is -8, expected a positive number"),
        (lambda: mh.MultiHeadAttention(64, 8, head_dim=0), "head_dim is 0, expected a positive number"),
        (lambda: mh.MultiHeadAttention(64, 8, dropout=1.5), "dropout is 1.5, expected a probability below 1"),
        (
            lambda: mh.MultiHeadAttention(64, 8)(torch.zeros(10, 64)),
            r"x has shape \(10, 64\), expected \(batch, tokens, 64\)",
        ),
        (lambda: mh.MultiHeadAttention(64, 8)(torch.zeros(2, 10, 63)), r"x has shape \(2, 10, 63\), expected"),
        (
            lambda: mh.MultiHeadAttention(64, 8)(torch.zeros(2, 10, 64), torch.zeros(2, 10, 32)),
            r"context has shape \(2, 10, 32\)",
        ),
        (
            lambda: mh.MultiHeadAttention(64, 8)(torch.zeros(2, 10, 64), torch.zeros(3, 10, 64)),
            "k has batch 3 but q has 2",
        ),
    ],
)
def test_refuses_with_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
