"""The layer against the formula, its shapes and its refusals."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import multihead as mh
from multihead.layer import Attend
from multihead.positions import Alibi, Rotary, T5Bias
from tests.accuracy import random_bool
from tests.layer.formula import by_formula, check_layer, randomised

MASKS = {"none": None, "causal": mh.masks.causal(), "padding": mh.masks.padding(random_bool(2, 11))}

OPTIONS = {
    "plain": {},
    "grouped": {"num_kv_heads": 3},
    "multi-query, narrow heads": {"num_kv_heads": 1, "head_dim": 5},
    "no bias": {"bias": False},
    "softcap and sinks": {"softcap": 2.0, "sinks": True},
    "scale": {"scale": 0.3},
    "other width out": {"out_dim": 13},
    "RMSNorm": {"qk_norm": nn.RMSNorm},
    "LayerNorm, gate": {"qk_norm": nn.LayerNorm, "output_gate": True},
    "gate": {"output_gate": True, "num_kv_heads": 2},
    "fused": {"fused": True},
    "fused, grouped, no bias, RMSNorm": {"fused": True, "num_kv_heads": 2, "bias": False, "qk_norm": nn.RMSNorm},
}

POSITIONS = {
    "rotary": lambda: Rotary(8),
    "part of rotary, interleaved": lambda: Rotary(8, fraction=0.5, pairs="interleaved"),
    "alibi": lambda: Alibi(6),
    "t5": lambda: T5Bias(6, buckets=8, max_distance=7),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_equals_the_formula(options, mask, cross):
    layer = randomised(mh.MultiHeadAttention(42, 6, **options))
    x, context = torch.randn(2, 7 if cross else 11, 42), torch.randn(2, 11, 42)
    check_layer(layer, (x, context) if cross else (x,), mask=mask)


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("given_positions", [False, True], ids=["by index", "given"])
def test_positions_equal_the_formula(position, mask, given_positions):
    layer = randomised(mh.MultiHeadAttention(48, 6, num_kv_heads=2, position=position(), qk_norm=nn.RMSNorm))
    positions = torch.randint(0, 30, (2, 11)) if given_positions else None
    check_layer(layer, (torch.randn(2, 11, 48),), mask=mask, positions=positions)


def test_the_comparison_would_notice_a_missing_norm_turn_or_gate():
    layer = randomised(mh.MultiHeadAttention(48, 6, position=Rotary(8), qk_norm=nn.RMSNorm, output_gate=True))
    x = torch.randn(2, 11, 48)
    for part in ("position", "q_norm", "gate_proj"):
        other = copy.deepcopy(layer)
        setattr(other, part, None)
        assert (by_formula(other, x) - layer(x)).abs().max() > 1e-3
    with pytest.raises(AssertionError, match="output: error"):
        check_layer(_Shifted(layer), (x,))


class _Shifted(mh.MultiHeadAttention):
    """A layer that is wrong: its heads come out in another order."""

    def __init__(self, layer):
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(layer).__dict__)
        self.attend = _Rolled()


class _Rolled(Attend):
    def forward(self, call):
        return super().forward(call).roll(1, 1)


def test_values_from_elsewhere_of_other_widths():
    layer = randomised(mh.MultiHeadAttention(42, 6, kdim=13, vdim=17, out_dim=5))
    x, context, values = torch.randn(2, 7, 42), torch.randn(2, 11, 13), torch.randn(2, 11, 17)
    check_layer(layer, (x, context, values), mask=MASKS["padding"])
    assert layer(x, context, values).shape == (2, 7, 5)
    only_context = mh.MultiHeadAttention(42, 6, kdim=13)
    assert only_context.v_proj.in_features == 13
    assert only_context(x, context).shape == (2, 7, 42)


def test_a_bias_of_the_callers_joins_the_positions():
    layer = randomised(mh.MultiHeadAttention(48, 6, position=Alibi(6)))
    check_layer(layer, (torch.randn(2, 11, 48),), bias=torch.randn(1, 6, 11, 11), mask=MASKS["causal"])
    check_layer(layer, (torch.randn(2, 11, 48),), bias=torch.randn(2, 1, 1, 11))


def test_keys_and_values_projected_once():
    layer = randomised(mh.MultiHeadAttention(42, 6, kdim=13, qk_norm=nn.RMSNorm))
    x, context = torch.randn(2, 7, 42), torch.randn(2, 11, 13)
    once = layer.keys_values(context)
    assert once.k.shape == once.v.shape == (2, 6, 11, 7)
    assert torch.equal(layer(x, once, mask=MASKS["padding"]), layer(x, context, mask=MASKS["padding"]))


SIZES = {
    "embed_dim": [12, 20, 30],
    "num_heads": [1, 2, 5, 6],
    "num_kv_heads": [None, 1, 2, 3, 5, 0],
    "head_dim": [None, 4, 7, 0],
    "out_dim": [None, 9],
    "dropout": [0.0, 0.5, 1.0],
    "scale": [None, 0.3, float("inf")],
    "softcap": [None, 2.0, 0.0],
    "sinks": [False, True],
    "bias": [False, True],
    "qk_norm": [None, nn.RMSNorm],
    "output_gate": [False, True],
    "fused": [False, True],
    "kdim": [None, 12],
}


def legal(options) -> bool:
    """Whether a layer of these options makes sense, said without the layer."""
    heads, kv_heads, dim = options["num_heads"], options["num_kv_heads"], options["head_dim"]
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_heads == 0 or heads % kv_heads:
        return False
    if dim == 0 or (dim is None and options["embed_dim"] % heads):
        return False
    if options["fused"] and options["kdim"] not in (None, options["embed_dim"]):
        return False
    if options["dropout"] == 1.0 or options["scale"] == float("inf") or options["softcap"] == 0.0:
        return False
    dim = options["embed_dim"] // heads if dim is None else dim
    return not (options["position"] == "rotary" and dim % 2)


@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SIZES.items()}),
    st.sampled_from([None, "rotary", "alibi", "t5"]),
    st.sampled_from(list(MASKS)),
    st.booleans(),
)
def test_any_options_equal_the_formula_or_are_refused_when_made(options, position, mask, training):
    def make():
        dim = options["head_dim"] or max(1, options["embed_dim"] // options["num_heads"])
        schemes = {"rotary": lambda: Rotary(dim), "alibi": lambda: Alibi(options["num_heads"])}
        schemes["t5"] = lambda: T5Bias(options["num_heads"], buckets=4, max_distance=5)
        scheme = schemes[position]() if position else None
        sizes = {name: value for name, value in options.items() if name not in ("embed_dim", "num_heads")}
        return mh.MultiHeadAttention(options["embed_dim"], options["num_heads"], position=scheme, **sizes)

    if not legal(options | {"position": position}):
        with pytest.raises(
            ValueError, match=r"expected|multiple|split|no probability|no finite|no positive|even|fused"
        ):
            make()
        return
    layer = randomised(make()).train(training and not options["dropout"])
    x = torch.randn(2, 11, options["embed_dim"], generator=torch.Generator().manual_seed(3))
    if layer.kdim == layer.embed_dim:
        check_layer(layer, (x,), mask=MASKS[mask])
        return
    with pytest.raises(ValueError, match="pass a context"):
        layer(x)
    if position is None:
        check_layer(layer, (x, torch.randn(2, 11, layer.kdim)), mask=MASKS[mask])


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
    layer = mh.MultiHeadAttention(24, 3, qk_norm=nn.RMSNorm, output_gate=True)
    called = []
    for name, module in layer.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
    layer(torch.randn(2, 5, 24))
    assert called == ["q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attend", "gate_proj", "out_proj"]
    assert isinstance(layer.attend, Attend)
    assert not list(layer.attend.parameters())


@pytest.mark.parametrize("inputs", [1, 2, 3], ids=["self", "context", "context and values"])
def test_a_fused_projection_with_something_attached_is_called_as_a_module(inputs):
    layer = mh.MultiHeadAttention(24, 3, num_kv_heads=1, fused=True)
    x = [torch.randn(2, 5, 24) for _ in range(inputs)]
    plain = layer(*x)
    called = []
    layer.qkv_proj.register_forward_hook(lambda module, inputs, output: called.append(inputs[0]))
    torch.testing.assert_close(layer(*x), plain)
    assert [id(tensor) for tensor in called] == [id(tensor) for tensor in x]
    layer.qkv_proj.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not torch.allclose(layer(*x), plain)


def test_a_fused_layer_equals_the_layer_of_three_projections():
    apart = mh.MultiHeadAttention(24, 6, num_kv_heads=2, position=Rotary(4))
    fused = mh.MultiHeadAttention(24, 6, num_kv_heads=2, position=Rotary(4), fused=True)
    state = apart.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv_proj.{kind}"] = torch.cat([state.pop(f"{name}_proj.{kind}") for name in "qkv"])
    fused.load_state_dict(state)
    x, caches = torch.randn(2, 7, 24), [mh.GrowingCache(), mh.GrowingCache()]
    torch.testing.assert_close(fused(x), apart(x))
    with torch.no_grad():
        for part in x.split([4, 1, 2], 1):
            steps = [
                layer(part, mask=mh.masks.causal(), cache=cache)
                for layer, cache in zip((apart, fused), caches, strict=True)
            ]
            torch.testing.assert_close(*steps)


def test_a_fused_layer_starts_as_if_its_projections_stood_apart():
    layer = mh.MultiHeadAttention(240, 8, num_kv_heads=2, fused=True)
    q, k, v = layer.qkv_proj.weight.split([240, 60, 60])
    # uniform between ± √(6 / (in + out)): Glorot & Bengio 2010, equation 16
    for part, widest in ((q, (6 / 480) ** 0.5), (k, (6 / 300) ** 0.5), (v, (6 / 300) ** 0.5)):
        assert 0.98 * widest < part.abs().max() <= widest
    assert not layer.qkv_proj.bias.any()


def test_same_numbers_in_train_and_eval_seen_or_not():
    layer = mh.MultiHeadAttention(24, 3, softcap=3.0, position=Rotary(8))
    x = torch.randn(2, 5, 24)
    expected = layer.train()(x)
    assert torch.equal(layer.eval()(x), expected)
    with torch.no_grad():
        # another kernel, where no gradient is wanted: the same but for rounding
        torch.testing.assert_close(layer(x), expected)
    with mh.observe(layer, statistics=mh.Statistics(top=3)) as seen:
        assert torch.equal(layer(x), expected)
    seen.check()


def test_dropout_works_while_training_only_and_weights_are_those_before_it():
    """pytorch#33360, #90842."""
    layer = mh.MultiHeadAttention(24, 3, dropout=0.5)
    x = torch.randn(2, 5, 24)
    assert not torch.equal(layer(x), layer(x))
    with mh.observe(layer, statistics=mh.Statistics(rows=tuple(range(5))), verify=False) as seen:
        layer(x)
    training = seen.recording().layer(0).statistics.rows
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    with mh.observe(layer, statistics=mh.Statistics(rows=tuple(range(5)))) as seen:
        layer(x)
    assert torch.equal(training, seen.recording().layer(0).statistics.rows)
    torch.testing.assert_close(training.sum(-1), torch.ones(1, 3, 5).expand(2, 3, 5))


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


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_empty_batches_and_sequences_are_right(shape):
    layer = mh.MultiHeadAttention(24, 3, position=Rotary(8))
    x = torch.randn(*shape, 24, requires_grad=True)
    output = layer(x, mask=mh.masks.causal())
    assert output.shape == (*shape, 24)
    output.sum().backward()
    assert x.grad.shape == x.shape


def test_a_context_of_no_tokens_gives_the_output_bias():
    layer = mh.MultiHeadAttention(24, 3)
    nn.init.ones_(layer.out_proj.bias)
    assert torch.equal(layer(torch.randn(2, 5, 24), torch.zeros(2, 0, 24)), torch.ones(2, 5, 24))


def test_copies_and_pickles():
    layer = mh.MultiHeadAttention(24, 3, num_kv_heads=1, sinks=True, position=Rotary(8), qk_norm=nn.RMSNorm)
    x = torch.randn(2, 5, 24)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_prints_its_sizes():
    printed = repr(mh.MultiHeadAttention(24, 6, num_kv_heads=2, kdim=7, out_dim=5))
    assert "embed_dim=24, num_heads=6, head_dim=4, num_kv_heads=2, kdim=7, out_dim=5" in printed
    assert "num_kv_heads" not in repr(mh.MultiHeadAttention(24, 6))


def layer(**options):
    return mh.MultiHeadAttention(64, 8, **options)


X = torch.zeros(2, 10, 64)


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
        (lambda: mh.MultiHeadAttention(0, 1), "embed_dim=0 is too small, expected a whole number of at least 1"),
        (lambda: mh.MultiHeadAttention(64, -8), "num_heads=-8 is too small"),
        (lambda: layer(num_kv_heads=0), "num_kv_heads=0 is too small"),
        (lambda: layer(head_dim=0), "head_dim=0 is too small"),
        (lambda: layer(kdim=0), "kdim=0 is too small"),
        (
            lambda: layer(fused=True, vdim=32),
            "fused=True projects tokens of embed_dim=64 features, but kdim=64 and vdim=32: leave it out where they",
        ),
        (lambda: layer(fused=True)(torch.zeros(2, 10, 63)), r"x has shape \(2, 10, 63\), expected"),
        (lambda: layer(fused=True)(X, torch.zeros(2, 10, 63)), r"context has shape \(2, 10, 63\), expected"),
        (lambda: layer(fused=True)(X, X, torch.zeros(2, 10, 63)), r"values has shape \(2, 10, 63\), expected"),
        (lambda: layer(dropout=1.5), "dropout=1.5 is no probability below 1"),
        (lambda: layer(softcap=0.0), "softcap=0.0 is no positive number"),
        (lambda: layer(softcap=-1.0), "softcap=-1.0 is no positive number"),
        (lambda: layer(scale=float("inf")), "scale=inf is no finite number"),
        (lambda: layer()(torch.zeros(10, 64)), r"x has shape \(10, 64\), expected \(batch, tokens, 64\)"),
        (lambda: layer()(torch.zeros(2, 10, 63)), r"x has shape \(2, 10, 63\), expected"),
        (
            lambda: layer()(X, torch.zeros(2, 10, 32)),
            r"context has shape \(2, 10, 32\), expected \(batch, tokens, 64\)",
        ),
        (lambda: layer()(X, torch.zeros(3, 10, 64)), "k has batch 3 but q has 2"),
        (lambda: layer()(X.to("meta")), "x is on meta but the layer on cpu"),
        (lambda: layer(kdim=32)(X), "from 64 features to a context of 32, with values of 32: pass a context"),
        (lambda: layer(vdim=32)(X, X), "keys have 64 features and its values 32: pass values"),
        (lambda: layer()(X, values=X), "values came without a context"),
        (lambda: layer()(X, layer().keys_values(X), X), "values came beside keys and values that are projected"),
        (lambda: layer()(X, positions=torch.arange(10)[None]), "positions came, but this layer has no position scheme"),
        (
            lambda: layer(position=Rotary(8))(X, positions=torch.arange(10)),
            r"positions have shape \(10\), expected \(2, 10\), or \(1, 10\) for the whole batch",
        ),
        (lambda: layer(position=Rotary(8))(X, X), "position is for self-attention"),
        (lambda: layer()(X, X, cache=mh.GrowingCache()), "cache is for self-attention"),
        (lambda: layer(position=Rotary(6)), "turns heads of 6 features, but the layer's have 8"),
        (lambda: layer(position=Alibi(6)), "6 heads.*8"),
        (
            lambda: layer()(X, mask=torch.ones(2, 10, dtype=torch.bool).expand(2, 10)),
            "does not broadcast",
        ),
    ],
)
def test_refuses_with_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mh.MultiHeadAttention(64, 8.0), "num_heads=8.0 is a float, expected a whole number"),
        (lambda: mh.MultiHeadAttention("64", 8), "embed_dim='64' is a str, expected a whole number"),
        (lambda: layer(head_dim=True), "head_dim=True is a bool, expected a whole number"),
        (lambda: layer(scale=torch.tensor(0.5)), "scale is a Tensor, expected a number"),
        (lambda: layer(softcap="30"), "softcap is a str, expected a number"),
        (lambda: layer(position="rotary"), "position is a str, expected an object of multihead.positions"),
        (lambda: layer()([[1.0]]), r"x is a list, expected a tensor \(batch, tokens, 64\)"),
        (lambda: layer()(X.double()), "x has dtype torch.float64 but the layer torch.float32: convert one"),
        (lambda: layer()(X, mh.masks.causal()), "context is a mask: say mask="),
        (lambda: layer()(X, X.numpy()), "context is a ndarray, expected a tensor"),
        (lambda: layer()(X, mask="causal"), "mask is a str"),
        (lambda: layer()(X, mask=torch.ones(10, 10)), "mask has dtype torch.float32, expected torch.bool"),
        (lambda: layer()(X, bias=[1.0]), "bias is a list, expected a tensor"),
    ],
)
def test_refuses_other_kinds_with_a_sentence(make, message):
    with pytest.raises(TypeError, match=message):
        make()
