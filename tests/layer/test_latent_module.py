"""Latent attention as a module: what is done to its parts, copies, compilers, hidden and missing tokens, refusals."""

import copy
import functools
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import multihead as mh
from multihead.layer.latent import MultiHeadLatentAttention
from multihead.positions import Alibi, Rotary
from tests.accuracy import check
from tests.layer.latent_equations import EMBED, HEADS, SIZES, by_equations, forced, made, seen_calls
from tests.layer.side_by_side import pruned_in
from tests.layer.test_cache import in_pieces


def test_every_projection_is_called_as_a_module():
    layer = made(q_rank=13)
    called = []
    for name, module in layer.named_children():
        module.register_forward_hook(lambda module, inputs, output, name=name: called.append(name))
    layer(torch.randn(2, 5, EMBED))
    expected = ["q_down", "q_norm", "q_proj", "kv_down", "kv_norm", "k_rope_proj", "k_proj", "v_proj", "attend"]
    assert called == [*expected, "out_proj"]


class _Adapted(nn.Linear):
    """A projection that is more than its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


def _adapt(layer, name):
    projection = getattr(layer, name)
    adapted = _Adapted(projection.in_features, projection.out_features, bias=False)
    adapted.load_state_dict(projection.state_dict())
    setattr(layer, name, adapted)


def _bias(layer, name):
    getattr(layer, name).bias = nn.Parameter(torch.ones(getattr(layer, name).out_features))


CHANGES = {
    "another class": _adapt,
    "a hook": lambda layer, name: getattr(layer, name).register_forward_hook(lambda module, inputs, output: 2 * output),
    "a hook before": lambda layer, name: getattr(layer, name).register_forward_pre_hook(
        lambda module, inputs: (2 * inputs[0],)
    ),
    "pruned": pruned_in,
    "parametrised": lambda layer, name: nn.utils.parametrizations.weight_norm(getattr(layer, name)),
    "a bias": _bias,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_what_is_done_to_a_projection_counts_in_steps_too(change, name):
    layer = forced(made(position=Rotary(4)), "absorbed")
    change(layer, name)
    layer.double()
    calls = seen_calls(layer)
    x = torch.randn(2, 9, EMBED, dtype=torch.float64)
    with torch.no_grad():
        whole = layer(x, mask=mh.masks.causal())
    found = in_pieces(layer, x, mh.GrowingCache(), [7, 1, 1], mask=lambda keys: mh.masks.causal())
    torch.testing.assert_close(found, whole)
    assert {call.k.shape[1] for call in calls} == {HEADS}


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_rows_that_see_nothing_give_the_output_bias_and_a_hidden_nan_stays_hidden(form):
    layer = forced(made(bias=True, position=Rotary(4)), form).double()
    valid = torch.tensor([[True] * 4 + [False], [False] * 5])
    x = torch.randn(2, 5, EMBED, dtype=torch.float64)
    expected = layer(x[:1, :4])
    x[:, 4] = torch.nan
    with torch.no_grad():
        found = layer(x, mask=mh.masks.padding(valid), cache=mh.GrowingCache())
    torch.testing.assert_close(found[:1, :4], expected)
    assert torch.equal(found[1, :4], layer.out_proj.bias.expand(4, EMBED))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_empty_batches_and_sequences_are_right(shape):
    layer = made(position=Rotary(4), q_rank=13)
    x = torch.randn(*shape, EMBED, requires_grad=True)
    output = layer(x, mask=mh.masks.causal())
    assert output.shape == (*shape, EMBED)
    output.sum().backward()
    assert x.grad.shape == x.shape
    with torch.no_grad():
        assert forced(layer, "absorbed")(x, cache=mh.GrowingCache()).shape == (*shape, EMBED)


def test_dropout_works_while_training_only():
    layer = made(dropout=0.5)
    x = torch.randn(2, 5, EMBED)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    check(layer(x), by_equations(copy.deepcopy(layer).double(), x.double()), by_equations(layer, x))


@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_autocast(form):
    layer = forced(made(position=Rotary(4), q_rank=13).eval(), form)
    x, cache = torch.randn(2, 11, EMBED), mh.FixedCache(11)
    exact = by_equations(copy.deepcopy(layer).double(), x.double(), mask=mh.masks.causal())
    plain = by_equations(copy.deepcopy(layer).bfloat16(), x.bfloat16(), mask=mh.masks.causal())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        steps = [layer(part, mask=mh.masks.causal(), cache=cache) for part in x.split([8, 3], 1)]
    check(torch.cat(steps, 1), exact, plain)
    assert cache.nbytes == 2 * 11 * (11 + 4) * 2


def test_copies_and_pickles_and_meta():
    layer = made(position=Rotary(4), q_rank=13, bias=True)
    x = torch.randn(2, 5, EMBED)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(copied(x), layer(x))
    empty = MultiHeadLatentAttention(EMBED, HEADS, **SIZES, position=Rotary(4), q_rank=13, bias=True, device="meta")
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(empty(x), layer(x))


def test_prints_its_sizes():
    printed = repr(made(value_dim=7))
    assert "embed_dim=23, num_heads=3, head_dim=5, rope_dim=4, kv_rank=11, value_dim=7" in printed
    assert "q_rank=13" in repr(made(q_rank=13))


COMPILED = """
import torch
import multihead as mh
from multihead.layer.latent import MultiHeadLatentAttention

rotary = mh.positions.Rotary(4)
layer = MultiHeadLatentAttention(23, 3, head_dim=5, rope_dim=4, kv_rank=11, q_rank=13, position=rotary).double()
close, causal = torch.testing.assert_close, mh.masks.causal()
whole = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
for length in (7, 11):
    x = torch.randn(2, length, 23, dtype=torch.float64)
    outcomes = []
    for run in (layer, whole):
        output = run(x, mask=causal)
        outcomes.append((output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))))
    close(outcomes[1], outcomes[0])

torch._dynamo.reset()
assert not layer.absorbs(6, 6) and layer.absorbs(1, 7)
steps = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
with torch.no_grad():
    cache = mh.FixedCache(11)
    found = [steps(x[:, :6], mask=causal, cache=cache)]
    found += [steps(x[:, [place]], mask=causal, cache=cache) for place in range(6, 11)]
close(torch.cat(found, 1), layer(x, mask=causal))

dynamic = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2)}}
program = torch.export.export(layer, (x[:, :7].clone(),), dynamic_shapes=dynamic)
close(program.module()(x), layer(x))
"""


def test_compiled_in_one_graph_and_exported():
    """In a process without the shape checks, which the compiler cannot follow."""
    subprocess.run([sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", COMPILED], check=True)


def layer(**options):
    return MultiHeadLatentAttention(EMBED, HEADS, **(SIZES | options))


X = torch.zeros(2, 7, EMBED)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        *(
            (functools.partial(layer, **{name: 0}), ValueError, f"{name}=0 is too small, expected a whole number")
            for name in (*SIZES, "q_rank", "value_dim")
        ),
        (lambda: MultiHeadLatentAttention(0, 3, **SIZES), ValueError, "embed_dim=0 is too small"),
        (lambda: MultiHeadLatentAttention(23, 0, **SIZES), ValueError, "num_heads=0 is too small"),
        (lambda: layer(kv_rank=11.0), TypeError, "kv_rank=11.0 is a float, expected a whole number"),
        (lambda: layer(q_rank=True), TypeError, "q_rank=True is a bool, expected a whole number"),
        (lambda: layer(dropout=1.0), ValueError, "dropout=1.0 is no probability below 1"),
        (lambda: layer(scale=float("nan")), ValueError, "scale=nan is no finite number"),
        (lambda: layer(position="rotary"), TypeError, "position is a str, expected an object of multihead.positions"),
        (lambda: layer(position=Rotary(8)), ValueError, "turns heads of 8 features, but the layer's have 4"),
        (lambda: layer(position=Alibi(8)), ValueError, "8 heads.*3"),
        (lambda: layer()([[1.0]]), TypeError, r"x is a list, expected a tensor \(batch, tokens, 23\)"),
        (lambda: layer()(X[0]), ValueError, r"x has shape \(7, 23\), expected \(batch, tokens, 23\)"),
        (lambda: layer()(X.double()), TypeError, "x has dtype torch.float64 but the layer torch.float32"),
        (lambda: layer()(X.to("meta")), ValueError, "x is on meta but the layer on cpu"),
        (lambda: layer()(X, mask="causal"), TypeError, "mask is a str"),
        (lambda: layer()(X, bias=[1.0]), TypeError, "bias is a list, expected a tensor"),
        (lambda: layer()(X, positions=torch.arange(7)[None]), ValueError, "but this layer has no position scheme"),
        (
            lambda: layer(position=Rotary(4))(X, positions=torch.arange(7)),
            ValueError,
            r"positions have shape \(7\), expected \(2, 7\), or \(1, 7\) for the whole batch",
        ),
        (
            lambda: layer(position=Alibi(3))(X, positions=torch.zeros(1, 7)),
            TypeError,
            "positions have dtype torch.float32, expected torch.int64 or torch.int32",
        ),
        (lambda: layer()(X, cache=mh.GrowingCache()), ValueError, "a cache keeps no gradients"),
    ],
)
def test_refuses_with_a_sentence(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_refuses_the_cache_of_another_layer():
    cache = mh.GrowingCache()
    with torch.no_grad():
        layer()(X, cache=cache)
        with pytest.raises(ValueError, match=r"k \(2, 1, 7, 16\) does not continue a cache of 1 heads of 15"):
            layer(kv_rank=12)(X, cache=cache)
