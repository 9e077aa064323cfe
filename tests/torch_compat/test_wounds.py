"""What people have long reported about torch's attention module, healed; each test carries the issue's number.

Where torch still has the wound, it is shown beside ours, so that a test says so on the day torch heals it. What needs
another library stands in ``test_tools.py``.
"""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from multihead import MultiHeadAttention, torch_compat
from multihead.torch_compat import MultiheadAttention
from tests.accuracy import check
from tests.torch_compat.pairs import OTHER_DIMS, E, H, L, N, S, inputs, pair, some_seen

HIDDEN = torch.zeros(N, S, dtype=torch.bool)
HIDDEN[1] = True
"""A key_padding_mask under which the second sequence sees nothing."""


def as_numbers(mask):
    """A boolean mask as nn.TransformerEncoder passes it on."""
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


def gradients(module, tensors, **arguments):
    """Of the inputs and parameters, for a loss that looks at the first sequence only."""
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    module.zero_grad()
    module(*tensors, **arguments)[0][:, 0].square().sum().backward()
    return [value.grad for value in (*tensors, *module.parameters())]


@pytest.mark.parametrize("mask", [HIDDEN, as_numbers(HIDDEN)], ids=["boolean", "float"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_41508_gradients_of_a_row_that_sees_nothing(need_weights, mask):
    """torch 2.13: NaN in every gradient if weights are asked for, although the loss does not look at that sequence."""
    theirs, ours = pair()
    tensors = inputs(theirs)
    arguments = {"key_padding_mask": mask, "need_weights": need_weights}
    assert any(grad.isnan().any() for grad in gradients(theirs, tensors, **arguments)) is need_weights
    found = gradients(ours, tensors, **arguments)
    alone = gradients(theirs, tensors, **(arguments | {"need_weights": False}))
    for mine, other in zip(found, alone, strict=True):
        torch.testing.assert_close(mine, other)
    assert not found[1][:, 1].any()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("numbers", [False, True])
def test_160064_152028_a_head_that_sees_nothing(numbers, dropout):
    """torch 2.13: NaN, but only if weights are asked for."""
    theirs, ours = pair(dropout=dropout)
    tensors = inputs(theirs)
    mask = (torch.arange(N * H) % H == 1)[:, None, None].expand(N * H, L, S)
    mask = as_numbers(mask) if numbers else mask
    assert theirs(*tensors, attn_mask=mask)[0].isnan().all()
    assert not theirs(*tensors, attn_mask=mask, need_weights=False)[0].isnan().any()
    torch.manual_seed(1)
    output, weights = ours(*tensors, attn_mask=mask, average_attn_weights=False)
    torch.manual_seed(1)
    assert torch.equal(output, ours(*tensors, attn_mask=mask, need_weights=False)[0])
    assert not weights[:, 1].any()
    torch.testing.assert_close(weights[:, [0, 2]].sum(-1), torch.ones(N, 2, L))


@pytest.mark.parametrize("need_weights", [True, False])
def test_172338_99282_causal_needs_no_mask(need_weights):
    """torch 2.13 refuses it, with and without weights."""
    theirs, ours = pair()
    x, _, _ = inputs(theirs)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        theirs(x, x, x, is_causal=True, need_weights=need_weights)
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    found = ours(x, x, x, is_causal=True, need_weights=need_weights)
    torch.testing.assert_close(found, theirs(x, x, x, attn_mask=later, need_weights=need_weights))
    padding = HIDDEN[:, :L].clone()
    padding[1, :4] = False
    found = ours(x, x, x, is_causal=True, key_padding_mask=padding, need_weights=need_weights)
    both = {"attn_mask": later, "key_padding_mask": padding, "need_weights": need_weights}
    torch.testing.assert_close(found, theirs(x, x, x, **both))


class Adapted(nn.Module):
    """A linear layer with a low-rank addition that learns (Hu et al. 2021, equation 3)."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(2, base.in_features)), nn.Parameter(torch.zeros(base.out_features, 2))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + x @ self.a.mT @ self.b.mT


@pytest.mark.parametrize("need_weights", [True, False])
def test_78109_what_is_attached_to_out_proj_works(need_weights):
    """torch 2.13 reads out_proj's weight and never calls it: an adapter there gets no gradient, a hook never fires."""
    fired = []
    for name, module in zip(("theirs", "ours"), pair(), strict=True):
        tensors = inputs(module)
        module.out_proj.register_forward_hook(lambda *_, name=name: fired.append(name))
        module(*tensors, need_weights=need_weights)
        module.out_proj = Adapted(module.out_proj)
        module(*tensors, need_weights=need_weights)[0].square().sum().backward()
        learned = module.out_proj.b.grad
        assert (learned is None) if name == "theirs" else learned.any()
    assert fired == ["ours", "ours"]


def test_what_is_attached_to_the_in_projection_works():
    """In cross-attention too, where a bare in_proj is only read: then it is called."""
    for options, name in (({}, "in_proj"), (OTHER_DIMS, "k_proj")):
        _, ours = pair(**options)
        tensors, bare, calls = inputs(ours), getattr(ours, name), []
        before = ours(*tensors)
        handle = bare.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.testing.assert_close(ours(*tensors), before)
        assert len(calls) == (1 if options else 3)
        handle.remove()
        setattr(ours, name, Adapted(bare))
        assert getattr(ours, f"{name}_weight") is bare.weight
        torch.testing.assert_close(ours(*tensors), before)
        ours(*tensors)[0].square().sum().backward()
        assert getattr(ours, name).b.grad.any()


class Doubling(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("how", ["hook", "subclass", "instance"])
def test_an_attached_change_reaches_queries_keys_and_values(how, shared):
    """Whatever doubles what in_proj gives changes all three parts, whether it is called once or thrice."""
    theirs, ours = pair()
    query, key, value = inputs(theirs)
    value = key if shared else value
    with torch.no_grad():
        theirs.in_proj_weight *= 2
        theirs.in_proj_bias *= 2
    if how == "hook":
        ours.in_proj.register_forward_hook(lambda module, args, output: 2 * output)
    elif how == "subclass":
        ours.in_proj.__class__ = Doubling
    else:
        forward = ours.in_proj.forward
        ours.in_proj.forward = lambda x: 2 * forward(x)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value))


class TestInsideTorchsEncoder:
    """nn.TransformerEncoderLayer computes itself in one operator when it evaluates, where nothing is attached."""

    def layer(self, **options):
        return nn.TransformerEncoderLayer(14, 2, 23, dropout=0.0, batch_first=True, **options).eval()

    def test_82919_128413_the_fast_path_skips_forward(self):
        """torch 2.13: it minds hooks now, but a forward of one's own is skipped, and out_proj is never called."""
        ran = []

        class Mine(nn.MultiheadAttention):
            def forward(self, *args, **kwargs):
                ran.append("forward")
                return super().forward(*args, **kwargs)

        layer, x = self.layer(), torch.randn(N, L, 14)
        layer.self_attn.__class__ = Mine
        with torch.no_grad():
            layer(x)
        assert not ran
        layer.self_attn.out_proj.register_forward_hook(lambda *_: ran.append("out_proj"))
        with torch.no_grad():
            layer(x)
        assert ran == ["forward"]

    def test_82919_128413_ours_is_called_with_and_without_hooks(self):
        ran, x = [], torch.randn(N, L, 14)

        class Mine(MultiheadAttention):
            def forward(self, *args, **kwargs):
                ran.append("forward")
                return super().forward(*args, **kwargs)

        layer = torch_compat.replace(self.layer())
        layer.self_attn.__class__ = Mine
        with torch.no_grad():
            plain = layer(x)
        assert ran == ["forward"]
        for name in ("in_proj", "attend", "out_proj"):
            part = getattr(layer.self_attn, name)
            part.register_forward_hook(lambda *_, name=name: ran.append(name))
            part.register_forward_pre_hook(lambda *_, name=name: ran.append(f"before {name}"))
        with torch.no_grad():
            assert torch.equal(layer(x), plain)
        expected = [word for name in ("in_proj", "attend", "out_proj") for word in (f"before {name}", name)]
        assert ran[1:] == ["forward", *expected]

    def test_86120_evaluation_is_what_training_is(self):
        """torch 2.13: the operator takes every number of a float mask but 0 as hidden."""
        layer, x = self.layer(), torch.randn(N, L, 14)
        mask = torch.randn(L, L)
        mask[:, 0] = 0.0
        slow = layer(x, src_mask=mask)
        with torch.no_grad():
            assert (layer(x, src_mask=mask) - slow).abs().max() > 0.01
            ours = torch_compat.replace(layer)(x, src_mask=mask)
        torch.testing.assert_close(ours, slow)
        assert torch.equal(layer(x, src_mask=mask), ours)

    def test_86120_a_sequence_that_is_all_padding(self):
        """torch 2.13: the operator gives NaN even without weights."""
        layer, x, padding = self.layer(), torch.randn(N, L, 14), HIDDEN[:, :L]
        with torch.no_grad():
            assert layer(x, src_key_padding_mask=padding)[1].isnan().all()
            ours = torch_compat.replace(layer)(x, src_key_padding_mask=padding)
        assert ours.isfinite().all()
        torch.testing.assert_close(layer(x, src_key_padding_mask=padding), ours)

    def test_97111_padded_positions_are_computed(self):
        """torch 2.13 keeps the length, which it once cut; but its nested path leaves zeros at padded positions."""
        encoder, x = nn.TransformerEncoder(self.layer(), 2), torch.randn(N, L, 14)
        padding = torch.arange(L) >= torch.tensor([[3], [5]])
        slow = encoder(x, src_key_padding_mask=padding)
        with torch.no_grad():
            fast = encoder(x, src_key_padding_mask=padding)
            assert fast.shape == slow.shape
            assert not fast[padding].any()
            ours = torch_compat.replace(encoder)(x, src_key_padding_mask=padding)
        torch.testing.assert_close(ours, slow)
        torch.testing.assert_close(ours[~padding], fast[~padding])


def test_33360_90842_weights_are_those_before_dropout():
    """torch 2.13: after dropout, so that no row sums to 1."""
    theirs, ours = pair(dropout=0.5)
    tensors = inputs(theirs)
    assert not torch.isclose(theirs(*tensors)[1].sum(-1), torch.ones(N, L)).any()
    dropped, weights = ours(*tensors)
    torch.testing.assert_close(weights, theirs.eval()(*tensors)[1])
    assert not torch.allclose(dropped, ours.eval()(*tensors)[0]), "the output is dropped from, all the same"


class TestSenses:
    """#170400, #114083: True hides here, as in torch's module, and shows in scaled_dot_product_attention."""

    def test_170400_114083_true_hides(self):
        _, ours = pair(num_heads=1)
        tensors = inputs(ours)
        mask = some_seen(L, S, seed=4)
        weights = ours(*tensors, attn_mask=mask)[1]
        assert not weights[:, mask].any()
        assert (weights[:, ~mask] > 0).all()
        q, k, v = ours._projected(*(tensor.transpose(0, 1) for tensor in tensors))
        shown = ours.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=~mask)).transpose(0, 1)
        torch.testing.assert_close(ours(*tensors, attn_mask=mask)[0], shown)
        assert "True at keys to ignore (torch's sense)" in MultiheadAttention.forward.__doc__

    def test_170400_114083_the_layer_has_the_other_sense(self):
        _, ours = pair()
        x = torch.randn(N, L, E)
        mask = some_seen(L, L, seed=4)
        layer, turned = MultiHeadAttention.from_torch(ours), x.transpose(0, 1)
        output, _ = ours(turned, turned, turned, attn_mask=mask)
        torch.testing.assert_close(layer(x, mask=~mask), output.transpose(0, 1))

    @pytest.mark.parametrize(
        ("name", "shape", "advice"),
        [
            ("key_padding_mask", (N, L), "True at keys to ignore, .*: pass attention_mask == 0 where the tokenizer's"),
            ("attn_mask", (L, L), "True where a query must not look, which is the opposite of .*: pass attn_mask.bool"),
        ],
    )
    def test_integers_are_refused_by_name(self, name, shape, advice):
        x = torch.randn(L, N, E)
        for dtype in (torch.int64, torch.uint8):
            with pytest.raises(TypeError, match=f"{name} has dtype {dtype}, expected torch.bool, {advice}"):
                MultiheadAttention(E, H)(x, x, x, **{name: torch.zeros(shape, dtype=dtype)})


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("need_weights", [True, False])
def test_101967_nan_in_a_hidden_key_does_not_leak(need_weights, numbers):
    """torch 2.13: it reaches every query, with and without weights."""
    theirs, ours = pair()
    query, key, value = inputs(theirs)
    hidden = torch.zeros(N, S, dtype=torch.bool)
    hidden[0, 2] = True
    arguments = {"key_padding_mask": as_numbers(hidden) if numbers else hidden, "need_weights": need_weights}
    expected = theirs(query, key, value, **arguments)
    key[2, 0] = value[2, 0] = torch.nan
    assert theirs(query, key, value, **arguments)[0][:, 0].isnan().all()
    torch.testing.assert_close(ours(query, key, value, **arguments), expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(query, key, value, **arguments), expected)


def test_27461_zero_attention_keeps_to_the_mask():
    """torch 2.13: with the causal hint and without weights the mask is dropped, and the zero key with it."""
    theirs, ours = pair(add_zero_attn=True, add_bias_kv=True)
    x, _, _ = inputs(theirs)
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    honest, weights = theirs(x, x, x, attn_mask=later)
    hinted, _ = theirs(x, x, x, attn_mask=later, is_causal=True, need_weights=False)
    assert (hinted - honest).abs().max() > 0.01
    for arguments in ({"attn_mask": later}, {"attn_mask": later, "is_causal": True}, {"is_causal": True}):
        torch.testing.assert_close(ours(x, x, x, **arguments), (honest, weights))
        torch.testing.assert_close(ours(x, x, x, **arguments, need_weights=False)[0], honest)
    assert not weights[:, :, :L].triu(1).any()
    assert (weights[:, :, L:] > 0).all()


def converted(module: MultiheadAttention, heads) -> MultiHeadAttention:
    """The library's own layer with some heads of a module: it has a head_dim of its own, so any number of them fits."""
    rows = torch.cat([torch.arange(module.head_dim) + head * module.head_dim for head in heads])
    layer = MultiHeadAttention(module.embed_dim, num_heads=len(heads), head_dim=module.head_dim)
    with torch.no_grad():
        parts = zip(module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3), strict=True)
        for projection, (weight, bias) in zip((layer.q_proj, layer.k_proj, layer.v_proj), parts, strict=True):
            projection.weight.copy_(weight[rows])
            projection.bias.copy_(bias[rows])
        layer.out_proj.weight.copy_(module.out_proj.weight[:, rows])
        layer.out_proj.bias.copy_(module.out_proj.bias)
    return layer


def test_103668_structured_pruning():
    """torch's one embed_dim is four sizes; a head less needs a layer that tells them apart."""
    theirs, ours = pair(batch_first=True)
    x = torch.randn(N, L, E)
    layer = converted(ours, [0, 2])
    assert layer.q_proj.weight.shape == (10, E)
    with torch.no_grad():
        theirs.out_proj.weight[:, 5:10] = 0.0
    later = torch.ones(L, L, dtype=torch.bool).triu(1)
    torch.testing.assert_close(layer(x, mask=~later), theirs(x, x, x, attn_mask=later)[0])
    theirs.in_proj_weight = nn.Parameter(theirs.in_proj_weight[:30].clone())
    with pytest.raises(RuntimeError, match="The size of tensor a"):
        theirs(x, x, x)


class TestCausalEndsTogether:
    def test_108108_144858_is_causal_lets_the_last_query_see_every_key(self):
        """torch 2.13 aligns the hint top-left: the only query of a decoding step sees the oldest key and no other."""
        theirs, ours = pair()
        x, _, _ = inputs(theirs)
        step, nothing_hidden = x[-1:], torch.zeros(1, L, dtype=torch.bool)
        whole, _ = theirs(x, x, x, attn_mask=torch.ones(L, L, dtype=torch.bool).triu(1), need_weights=False)
        wrong, _ = theirs(step, x, x, attn_mask=nothing_hidden, is_causal=True, need_weights=False)
        torch.testing.assert_close(wrong, theirs(step, x[:1], x[:1])[0])
        for arguments in ({}, {"attn_mask": nothing_hidden}):
            for need_weights in (True, False):
                output, weights = ours(step, x, x, is_causal=True, need_weights=need_weights, **arguments)
                torch.testing.assert_close(output, whole[-1:])
                assert weights is None or (weights > 0).all()

    def test_108108_144858_more_keys_or_more_queries(self):
        _, ours = pair()
        query, key, value = inputs(ours)
        weights = ours(query, key, value, is_causal=True)[1]
        assert torch.equal(weights[0] > 0, torch.ones(L, S).tril(S - L).bool())
        weights = ours(key, query, query, is_causal=True)[1]
        assert torch.equal(weights[0] > 0, torch.ones(S, L).tril(L - S).bool())

    def test_a_wrong_hint_changes_nothing(self):
        """torch 2.13 believes it where no weights are asked for, and drops the mask."""
        theirs, ours = pair()
        x, _, _ = inputs(theirs)
        mask = some_seen(L, L, seed=6)
        honest, _ = theirs(x, x, x, attn_mask=mask)
        assert (theirs(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0] - honest).abs().max() > 0.01
        for need_weights in (True, False):
            output, _ = ours(x, x, x, attn_mask=mask, is_causal=True, need_weights=need_weights)
            torch.testing.assert_close(output, honest)


def test_181528_grouped_heads_are_the_layers():
    """torch's signature cannot say them; ``multihead.MultiHeadAttention`` can, in float32 and under masks."""
    assert "num_kv_heads" not in inspect.signature(nn.MultiheadAttention).parameters
    layer = MultiHeadAttention(12, num_heads=6, num_kv_heads=3)
    theirs = nn.MultiheadAttention(12, 6, batch_first=True)
    with torch.no_grad():
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
            projection.bias.normal_()
        repeated = [
            tensor.unflatten(0, (3, 2)).repeat_interleave(2, 0).flatten(0, 1)
            for projection in (layer.k_proj, layer.v_proj)
            for tensor in (projection.weight, projection.bias)
        ]
        theirs.in_proj_weight.copy_(torch.cat([layer.q_proj.weight, *repeated[::2]]))
        theirs.in_proj_bias.copy_(torch.cat([layer.q_proj.bias, *repeated[1::2]]))
    theirs.out_proj.load_state_dict(layer.out_proj.state_dict())
    x = torch.randn(N, L, 12)
    for mask in (some_seen(L, L, seed=1), torch.ones(L, L, dtype=torch.bool).triu(1)):
        plain = theirs.float()(x, x, x, attn_mask=mask)[0]
        exact = theirs.double()(*[x.double()] * 3, attn_mask=mask)[0]
        check(layer(x, mask=~mask), exact, plain)


def test_122660_nothing_rests_on_torchs_module(monkeypatch):
    """torch means to retire its module: ours computes and loads its checkpoints without it."""
    theirs, _ = pair()
    tensors, state = inputs(theirs), theirs.state_dict()
    expected = theirs(*tensors)
    monkeypatch.delattr(nn, "MultiheadAttention")
    monkeypatch.delattr(F, "multi_head_attention_forward")
    monkeypatch.delattr(torch, "_native_multi_head_attention")
    ours = MultiheadAttention(E, H)
    ours.load_state_dict(state)
    torch.testing.assert_close(ours(*tensors), expected)
    torch.testing.assert_close(ours.eval()(*tensors), expected)
