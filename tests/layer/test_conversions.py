"""Torch's attention layer beside what is made of its weights, and the other way round."""

import functools

import pytest
import torch
from torch import nn

import multihead as mh
from multihead import positions, torch_compat
from tests.accuracy import random_bool
from tests.layer.side_by_side import Adapted, compare, noisy, pruned_in

BATCH, QUERIES, KEYS, EMBED, HEADS, KV_HEADS, HEAD_DIM = 2, 7, 11, 42, 6, 3, 10


TORCH = {
    "usual": {},
    "no bias": {"bias": False},
    "kdim, vdim": {"kdim": 5, "vdim": 13},
    "vdim, no bias": {"vdim": 13, "bias": False},
    "sequence first": {"batch_first": False},
}
VISIBLE = {
    "none": None,
    "padding": random_bool(BATCH, 1, 1, KEYS, seed=1),
    "causal": torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(KEYS - QUERIES),
}


def as_torch_runs(visible, layer, x, context, values):
    """Torch's layer on batch-first tensors, with a mask in this library's sense."""
    hidden = None if visible is None else ~visible.expand(BATCH, HEADS, QUERIES, KEYS).flatten(0, 1)
    inputs = (x, context, values) if layer.batch_first else [tensor.transpose(0, 1) for tensor in (x, context, values)]
    output = layer(*inputs, attn_mask=hidden, need_weights=False)[0]
    return output if layer.batch_first else output.transpose(0, 1)


def as_ours_runs(visible, layer, x, context, values):
    return layer(x, context, values, mask=visible)


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, torch_compat.MultiheadAttention], ids=["torch", "compat"])
@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=str)
def test_from_torch_to_a_fused_layer(options, kind):
    theirs = noisy(kind(EMBED, HEADS, batch_first=True, **options))
    ours = mh.MultiHeadAttention.from_torch(theirs, fused=True)
    assert torch.equal(ours.qkv_proj.weight, theirs.in_proj_weight)
    compare_with_torch(ours, theirs, VISIBLE["padding"])


def test_a_layer_whose_keys_have_other_widths_is_not_fused():
    with pytest.raises(ValueError, match="fused=True projects tokens of embed_dim=42 features, but kdim=5"):
        mh.MultiHeadAttention.from_torch(nn.MultiheadAttention(EMBED, HEADS, kdim=5, vdim=13), fused=True)


def torch_inputs(layer):
    shapes = ((QUERIES, EMBED), (KEYS, layer.kdim), (KEYS, layer.vdim))
    return [torch.randn(BATCH, *shape) for shape in shapes]


def compare_with_torch(ours, theirs, visible=None):
    runs = (functools.partial(run, visible) for run in (as_ours_runs, as_torch_runs))
    compare(ours, theirs, *runs, *torch_inputs(theirs))


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, torch_compat.MultiheadAttention], ids=["torch", "compat"])
@pytest.mark.parametrize("visible", VISIBLE.values(), ids=VISIBLE)
@pytest.mark.parametrize("options", TORCH.values(), ids=TORCH)
def test_from_torch_equals_torch(options, visible, kind):
    theirs = noisy(kind(EMBED, HEADS, **{"batch_first": True} | options))
    compare_with_torch(mh.MultiHeadAttention.from_torch(theirs), theirs, visible)


def test_self_attention_from_torch_equals_torch():
    theirs = noisy(nn.MultiheadAttention(EMBED, HEADS, batch_first=True))
    ours = mh.MultiHeadAttention.from_torch(theirs)
    x = torch.randn(BATCH, QUERIES, EMBED)
    compare(ours, theirs, lambda layer, x: layer(x), lambda layer, x: layer(x, x, x)[0], x)


OURS = {
    "usual": {},
    "no bias": {"bias": False},
    "kdim, vdim": {"kdim": 5, "vdim": 13},
    "vdim, no bias": {"vdim": 13, "bias": False},
    "grouped": {"num_kv_heads": KV_HEADS},
    "grouped, kdim": {"num_kv_heads": 2, "kdim": 5},
    "multi-query, no bias": {"num_kv_heads": 1, "bias": False},
    "its own scale": {"scale": 7**-0.5},
    "fused": {"fused": True},
    "fused, grouped, no bias": {"fused": True, "num_kv_heads": 2, "bias": False},
}


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "sequence first"])
@pytest.mark.parametrize("visible", VISIBLE.values(), ids=VISIBLE)
@pytest.mark.parametrize("options", OURS.values(), ids=OURS)
def test_to_torch_equals_ours(options, visible, batch_first):
    ours = noisy(mh.MultiHeadAttention(EMBED, HEADS, **options))
    theirs = ours.to_torch(batch_first=batch_first)
    assert type(theirs) is nn.MultiheadAttention
    assert theirs.batch_first == batch_first
    compare_with_torch(ours, theirs, visible)


@pytest.mark.parametrize("without", [["q_proj", "out_proj"], ["k_proj"], ["out_proj"]], ids=str)
def test_to_torch_fills_missing_biases(without):
    ours = noisy(mh.MultiHeadAttention(EMBED, HEADS))
    for name in without:
        getattr(ours, name).bias = None
    theirs = ours.to_torch()
    assert theirs.in_proj_bias is not None
    compare_with_torch(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 5, "vdim": 13}], ids=str)
def test_there_and_back_changes_no_number(options):
    ours = noisy(mh.MultiHeadAttention(EMBED, HEADS, dropout=0.25, **options))
    back = mh.MultiHeadAttention.from_torch(ours.to_torch())
    before, after = ours.state_dict(), back.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert repr(back) == repr(ours)


def swap_q_and_k(layer):
    layer.q_proj, layer.k_proj = layer.k_proj, layer.q_proj


def swap_heads(layer):
    with torch.no_grad():
        layer.v_proj.weight.copy_(layer.v_proj.weight.roll(layer.head_dim, 0))


def wrong_scale(layer):
    layer.scale = 0.5


@pytest.mark.parametrize("wrong", [swap_q_and_k, swap_heads, wrong_scale])
def test_the_comparison_with_torch_notices(wrong):
    theirs = noisy(nn.MultiheadAttention(EMBED, HEADS, batch_first=True))
    ours = mh.MultiHeadAttention.from_torch(theirs)
    wrong(ours)
    with pytest.raises(AssertionError, match="float32: error"):
        compare_with_torch(ours, theirs)


def test_the_comparison_notices_what_float64_alone_shows():
    theirs = noisy(nn.MultiheadAttention(EMBED, HEADS, batch_first=True))
    ours = mh.MultiHeadAttention.from_torch(theirs)
    x = torch.randn(BATCH, QUERIES, EMBED)
    with pytest.raises(AssertionError, match="float64: "):
        compare(
            ours, theirs, lambda m, x: m(x) + (1e-4 if x.dtype == torch.float64 else 0), lambda m, x: m(x, x, x)[0], x
        )


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("options", [{}, {"kdim": 5}], ids=str)
def test_what_torch_conversions_keep(options, training):
    theirs = nn.MultiheadAttention(EMBED, HEADS, dropout=0.25, dtype=torch.bfloat16, **options).train(training)
    theirs.out_proj.weight.requires_grad_(requires_grad=False)
    theirs.in_proj_bias.requires_grad_(requires_grad=False)
    ours = mh.MultiHeadAttention.from_torch(theirs)
    for layer in (ours, ours.to_torch()):
        assert layer.dropout == 0.25
        assert all(module.training == training for module in layer.modules())
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
        assert {parameter.device.type for parameter in layer.parameters()} == {"cpu"}
        frozen = {name for name, parameter in layer.named_parameters() if not parameter.requires_grad}
        assert frozen == (
            {"out_proj.weight", "in_proj_bias"}
            if isinstance(layer, nn.MultiheadAttention)
            else {"out_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias"}
        )


@pytest.mark.parametrize("frozen", [["q_proj"], ["q_proj", "k_proj", "v_proj"]], ids=str)
def test_torchs_one_projection_learns_where_one_of_three_does(frozen):
    ours = mh.MultiHeadAttention(EMBED, HEADS)
    for name in frozen:
        getattr(ours, name).requires_grad_(requires_grad=False)
    theirs = ours.to_torch()
    assert theirs.in_proj_weight.requires_grad == theirs.in_proj_bias.requires_grad == (len(frozen) < 3)


def test_torch_conversions_share_nothing_and_draw_no_random_numbers():
    theirs = nn.MultiheadAttention(EMBED, HEADS)
    state = torch.get_rng_state()
    ours = mh.MultiHeadAttention.from_torch(theirs)
    back = ours.to_torch()
    assert torch.equal(torch.get_rng_state(), state)
    expected = [parameter.clone() for parameter in ours.parameters()]
    with torch.no_grad():
        for parameter in (*theirs.parameters(), *back.parameters()):
            parameter.zero_()
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), expected, strict=True))


def test_conversions_stay_on_the_device():
    theirs = nn.MultiheadAttention(EMBED, HEADS, device="meta")
    ours = mh.MultiHeadAttention.from_torch(theirs)
    for layer in (ours, ours.to_torch()):
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}


def test_a_subclass_makes_its_own_kind():
    class Mine(mh.MultiHeadAttention):
        pass

    assert type(Mine.from_torch(nn.MultiheadAttention(EMBED, HEADS))) is Mine


class Theirs(nn.MultiheadAttention):
    """A layer that may compute anything."""


def adapted():
    layer = torch_compat.MultiheadAttention(EMBED, HEADS)
    layer.in_proj = Adapted(EMBED, 3 * EMBED)
    return layer


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (
            lambda: nn.MultiheadAttention(EMBED, HEADS, add_bias_kv=True, add_zero_attn=True),
            ValueError,
            "as add_bias_kv and add_zero_attn would ask: torch_compat.MultiheadAttention has them",
        ),
        (lambda: nn.MultiheadAttention(EMBED, HEADS, add_zero_attn=True), ValueError, "as add_zero_attn would ask"),
        (lambda: Theirs(EMBED, HEADS), TypeError, r"Theirs is not understood, expected torch\.nn.*a subclass may"),
        (
            adapted,
            TypeError,
            r"in_proj of this MultiheadAttention is not to be copied \(\S+Adapted, no plain nn\.Linear",
        ),
        (lambda: nn.Linear(3, 5), TypeError, r"torch\.nn\.modules\.linear\.Linear is not understood"),
        (
            lambda: pruned_in(nn.MultiheadAttention(EMBED, HEADS), "", "in_proj_weight"),
            TypeError,
            "in_proj_weight of this MultiheadAttention is a Tensor, expected a plain parameter",
        ),
        (
            lambda: pruned_in(nn.MultiheadAttention(EMBED, HEADS), "out_proj", "bias"),
            TypeError,
            r"out_proj of this MultiheadAttention is not to be copied \(whose bias is no plain parameter\)",
        ),
        (lambda: nn.MultiheadAttention(EMBED, HEADS, dropout=1.0), ValueError, "dropout=1.0 is no probability below 1"),
    ],
)
def test_from_torch_refuses_with_a_sentence(module, error, message):
    with pytest.raises(error, match=message):
        mh.MultiHeadAttention.from_torch(module())


class Changed(mh.MultiHeadAttention):
    """A layer that may compute anything."""

    def forward(self, x):
        return x


def test_to_torch_names_every_reason():
    layer = Changed(
        EMBED,
        HEADS,
        head_dim=HEAD_DIM,
        out_dim=5,
        scale=0.3,
        softcap=2.0,
        sinks=True,
        qk_norm=nn.RMSNorm,
        output_gate=True,
        position=positions.Rotary(HEAD_DIM),
    )
    layer.k_proj = Adapted(EMBED, HEADS * HEAD_DIM)
    layer.attend = nn.Identity()
    pruned_in(layer, "v_proj")
    with pytest.raises(
        ValueError,
        match=r"cannot express this layer's num_heads · head_dim = 60 beside embed_dim=42, out_dim=5, scale=0\.3, "
        r"softcap=2\.0, sinks, qk_norm, output_gate, position=Rotary, attend=Identity, forward of Changed, "
        r"k_proj \(\S+Adapted, no plain nn\.Linear\) and v_proj \(whose weight is no plain parameter\)\.",
    ):
        layer.to_torch()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"head_dim": 5}, "num_heads · head_dim = 30 beside embed_dim=42"),
        ({"out_dim": 5}, "out_dim=5"),
        ({"scale": 0.3}, "scale=0.3"),
        ({"softcap": 2.0}, "softcap=2.0"),
        ({"sinks": True}, "sinks"),
        ({"qk_norm": nn.LayerNorm}, "qk_norm"),
        ({"output_gate": True}, "output_gate"),
        ({"position": positions.Alibi(HEADS)}, "position=Alibi"),
    ],
)
def test_to_torch_refuses_with_the_reason_alone(options, reason):
    with pytest.raises(ValueError, match=f"cannot express this layer's {reason}\\.$"):
        mh.MultiHeadAttention(EMBED, HEADS, **options).to_torch()
