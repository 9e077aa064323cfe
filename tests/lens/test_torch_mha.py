"""torch's own attention modules, on their fast and their slow paths."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from multihead import Statistics, masks
from multihead.errors import CheckError, UnsupportedAttentionError
from multihead.lens import observe
from tests.lens.hosts import nothing_patched, observed, padded, same, whole_rows


class Operators(TorchDispatchMode):
    """Counts the fused operators that ran."""

    def __init__(self):
        super().__init__()
        self.fast = {"_transformer_encoder_layer_fwd": 0, "_native_multi_head_attention": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.fast:
            self.fast[name] += 1
        return func(*args, **(kwargs or {}))


def fast_calls(run):
    with Operators() as operators, torch.no_grad():
        run()
    return operators.fast


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(**options):
    torch.manual_seed(2)
    module = nn.MultiheadAttention(15, 5, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module


N, L, S, H = 2, 7, 11, 5
HIDDEN_KEYS = ~padded(11, 5).bool()
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": HIDDEN_KEYS},
    "float padding": {"key_padding_mask": torch.zeros(N, S).masked_fill(HIDDEN_KEYS, -torch.inf)},
    "padding bias": {"key_padding_mask": random(N, S, seed=4)},
    "boolean": {"attn_mask": random(L, S, seed=5) > 0.8},
    "float": {"attn_mask": random(L, S, seed=5)},
    "per head": {"attn_mask": random(N * H, L, S, seed=6) > 0.8},
    "float per head": {"attn_mask": random(N * H, L, S, seed=6)},
    "both": {"attn_mask": random(L, S, seed=5) > 1.0, "key_padding_mask": HIDDEN_KEYS},
    "both float": {"attn_mask": random(L, S, seed=5), "key_padding_mask": random(N, S, seed=4)},
}


def torch_weights(module, *args, **kwargs):
    with torch.no_grad():
        return module(*args, **(kwargs | {"need_weights": True, "average_attn_weights": False}))[1]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_cross_attention(options, mask, need_weights):
    module = attention(**options)
    query, memory = random(N, L, 15, seed=1), random(N, S, 15, seed=2)
    if not module.batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    kwargs = MASKS[mask]
    seen = observed(
        module, query, memory, memory, need_weights=need_weights, **kwargs, options={"statistics": whole_rows(L)}
    )
    assert seen.check().passed
    (layer,) = seen.layers
    assert (layer.host, layer.name) == ("nn.MultiheadAttention", "")
    theirs = torch_weights(module, query, memory, memory, **kwargs)
    assert torch.allclose(layer.statistics.rows, theirs, atol=1e-5)
    recording = seen.recording([["t"] * L] * N, source=[["s"] * S] * N)
    extra = ["[bias_k]"] * bool(options.get("add_bias_kv")) + ["[zero]"] * bool(options.get("add_zero_attn"))
    assert recording.layers[0].query_text == "target"
    assert recording.texts[recording.layers[0].key_text] == [["s"] * S + extra] * N


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("kind", ["self", "three texts", "all extras", "unbatched", "odd widths"])
def test_other_inputs(kind, need_weights):
    options = {"odd widths": {"kdim": 13, "vdim": 17}, "all extras": {"add_bias_kv": True, "add_zero_attn": True}}
    module = attention(**options.get(kind, {}))
    query, key, value = random(L, N, 15), random(S, N, 15, seed=1), random(S, N, 15, seed=2)
    if kind == "self":
        key = value = query
    if kind == "odd widths":
        key, value = random(S, N, 13, seed=1), random(S, N, 17, seed=2)
    if kind == "unbatched":
        query, key, value = query[:, 0], key[:, 0], value[:, 0]
    seen = observed(module, query, key, value, need_weights=need_weights, options={"statistics": whole_rows(L)})
    assert seen.check().passed
    theirs = torch_weights(module, query, key, value)
    ours = seen.layers[0].statistics.rows
    assert torch.allclose(ours[0] if kind == "unbatched" else ours, theirs, atol=1e-5)


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_causal_hint(hint, need_weights, padding):
    module = attention()
    x = random(S, N, 15)
    kwargs = {"attn_mask": nn.Transformer.generate_square_subsequent_mask(S), "is_causal": hint}
    if padding:
        kwargs["key_padding_mask"] = torch.zeros(N, S).masked_fill(HIDDEN_KEYS, -torch.inf)
    seen = observed(module, x, x, x, need_weights=need_weights, **kwargs, options={"statistics": whole_rows(S)})
    assert seen.check().passed
    mask = seen.layers[0].mask
    assert (mask.left if padding else mask) == masks.causal()
    assert torch.allclose(seen.layers[0].statistics.rows, torch_weights(module, x, x, x, **kwargs), atol=1e-5)


@pytest.mark.parametrize("padding", [None, "bool"])
def test_fast_path_of_the_attention_itself(padding):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(14, 2, batch_first=True).eval()
    x = random(N, S, 14)
    kwargs = {"need_weights": False} | ({"key_padding_mask": HIDDEN_KEYS} if padding else {})
    assert fast_calls(lambda: module(x, x, x, **kwargs))["_native_multi_head_attention"] == 1

    def watched():
        with observe(module) as seen:
            module(x, x, x, **kwargs)
        assert seen.check().passed

    assert fast_calls(watched)["_native_multi_head_attention"] == 1
    observed(module, x, x, x, **kwargs)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("mask", ["none", "padding", "boolean", "both", "numbers", "causal"])
def test_fast_path_of_the_encoder_layer(mask, activation, norm_first):
    layer = encoder(1, activation=activation, norm_first=norm_first).layers[0]
    x = random(N, S, 14)
    square = random(S, S, seed=5) > 0.8
    kwargs = {
        "none": {},
        "padding": {"src_key_padding_mask": HIDDEN_KEYS},
        "boolean": {"src_mask": square},
        "both": {"src_mask": square, "src_key_padding_mask": HIDDEN_KEYS},
        "numbers": {"src_mask": torch.where(square, 0.5, 0.0)},
        "causal": {"src_mask": nn.Transformer.generate_square_subsequent_mask(S), "is_causal": True},
    }[mask]

    def watched():
        with observe(layer) as seen:
            layer(x, **kwargs)
        assert seen.check().passed
        assert [found.name for found in seen.layers] == ["self_attn"]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting mask without torch.bool")
        assert fast_calls(lambda: layer(x, **kwargs))["_transformer_encoder_layer_fwd"] == 1
        assert fast_calls(watched)["_transformer_encoder_layer_fwd"] == 1
        seen = observed(layer, x, **kwargs, options={"statistics": whole_rows(S)})
    inputs = layer.norm1(x) if norm_first else x
    slow = {"attn_mask": kwargs.get("src_mask"), "key_padding_mask": kwargs.get("src_key_padding_mask")}
    if mask == "numbers":
        slow["attn_mask"] = square  # the fused operator hides where a float mask is not 0
    theirs = torch_weights(layer.self_attn, inputs, inputs, inputs, **slow)
    assert torch.allclose(seen.layers[0].statistics.rows, theirs, atol=1e-5)


def encoder(layers=3, **options):
    torch.manual_seed(4)
    layer = nn.TransformerEncoderLayer(14, 2, dim_feedforward=13, batch_first=True, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
        model = nn.TransformerEncoder(layer, layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("lengths", [None, (11, 5), (7, 3)], ids=str)
def test_encoder_on_its_fast_path(lengths):
    """With padding the encoder packs its input in a nested tensor, which may be shorter than the padded one."""
    model, x = encoder(), random(N, S, 14)
    kwargs = {}
    if lengths is not None:
        kwargs["src_key_padding_mask"] = torch.arange(S) >= torch.tensor(lengths)[:, None]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        assert fast_calls(lambda: model(x, **kwargs))["_transformer_encoder_layer_fwd"] == 3
        with Operators() as operators, torch.no_grad(), observe(model) as seen:
            model(x, **kwargs)
        assert operators.fast["_transformer_encoder_layer_fwd"] == 3
        seen = observed(model, x, **kwargs)
    assert seen.check().passed
    assert [layer.name for layer in seen.layers] == [f"layers.{i}.self_attn" for i in range(3)]
    assert [layer.sizes.keys for layer in seen.layers] == [S] * 3
    mask = seen.layers[0].mask
    assert mask is None if lengths is None else torch.equal(mask.valid, ~kwargs["src_key_padding_mask"])
    recording = seen.recording([["t"] * S] * N)
    assert set(recording.texts) == {"text"}


def test_encoder_on_its_slow_path_sees_the_same():
    model, x = encoder(), random(N, S, 14)
    fast = observed(model, x, options={"statistics": whole_rows(S)})
    slow = observed(model, x, grad=True, options={"statistics": whole_rows(S)})
    assert slow.check().passed
    for one, other in zip(fast.layers, slow.layers, strict=True):
        assert torch.allclose(one.statistics.rows, other.statistics.rows, atol=1e-5)
        assert one.name == other.name


@pytest.mark.parametrize("heads", [[0], [1]])
def test_some_heads_and_queries_are_checked_after_the_projections(heads):
    model, x = encoder(), random(N, S, 14)
    every = observed(model, x, src_key_padding_mask=HIDDEN_KEYS.float() * 0)
    some = observed(model, x, options={"heads": heads, "queries": [2, 5], "layers": [1]})
    assert some.check().passed
    (layer,) = some.layers
    assert (layer.index, layer.heads, layer.queries) == (1, tuple(heads), (2, 5))
    assert torch.allclose(layer.statistics.lse, every.layers[1].statistics.lse[:, heads][..., [2, 5]], atol=1e-5)


def test_decoder_layers_have_two_texts():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(15, 3, dim_feedforward=13, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    target, memory = random(N, L, 15), random(N, S, 15, seed=1)
    kwargs = {"tgt_mask": nn.Transformer.generate_square_subsequent_mask(L), "memory_key_padding_mask": HIDDEN_KEYS}
    seen = observed(model, target, memory, **kwargs)
    assert seen.check().passed
    assert [found.name for found in seen.layers] == [
        f"layers.{i}.{name}" for i in range(2) for name in ("self_attn", "multihead_attn")
    ]
    assert seen.layers[0].mask == masks.causal()
    assert isinstance(seen.layers[1].mask, masks.Padding)
    recording = seen.recording([["t"] * L] * N, source=[["s"] * S] * N)
    assert [(found.query_text, found.key_text) for found in recording.layers] == [
        ("target", "target"),
        ("target", "source"),
    ] * 2


def test_the_whole_transformer():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
        model = nn.Transformer(14, 2, 2, 1, dim_feedforward=13, batch_first=True).eval()
    seen = observed(model, random(N, S, 14), random(N, S, 14, seed=1))
    assert seen.check().passed
    recording = seen.recording([["t"] * S] * N, source=[["s"] * S] * N)
    assert [(found.query_text, found.key_text) for found in recording.layers] == [
        *[("source", "source")] * 2,
        ("target", "target"),
        ("target", "source"),
    ]


def test_the_function_without_the_module():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = attention()

        def forward(self, x):
            inner = self.inner
            return F.multi_head_attention_forward(
                x, x, x, 15, 5, inner.in_proj_weight, inner.in_proj_bias, None, None, False, 0.3,
                inner.out_proj.weight, inner.out_proj.bias, training=False, need_weights=False,
            )[0]  # fmt: skip

    seen = observed(Own(), random(L, N, 15))
    assert seen.check().passed
    assert [(layer.host, layer.name) for layer in seen.layers] == [("nn.MultiheadAttention", "")]


@pytest.mark.parametrize("grad", [False, True])
def test_subclasses_with_a_forward_of_their_own_keep_the_fast_path(grad):
    class Mine(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, need_weights=False)[0]

    class Layer(nn.TransformerEncoderLayer):
        def forward(self, src, *args, **kwargs):
            return super().forward(src, *args, **kwargs) * 2

    torch.manual_seed(0)
    mine = Mine(14, 2, batch_first=True).eval()
    layer = Layer(14, 2, dim_feedforward=13, batch_first=True).eval()
    x = random(N, S, 14)
    for module in (mine, layer):
        seen = observed(module, x, grad=grad)
        assert seen.check().passed
        assert len(seen.layers) == 1

    def watched():
        with observe(mine), observe(layer):
            mine(x)
            layer(x)

    assert fast_calls(watched) == {"_transformer_encoder_layer_fwd": 1, "_native_multi_head_attention": 1}
    assert nothing_patched()


def test_a_custom_attention_inside_torchs_encoder_layer():
    class Own(nn.MultiheadAttention):
        def forward(self, query, key, value, **kwargs):
            heads = query.unflatten(-1, (2, 7)).transpose(1, 2)
            return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2), None

    layer = encoder(1).layers[0]
    layer.self_attn = Own(14, 2, batch_first=True).eval()
    seen = observed(layer, random(N, S, 14), grad=True)
    assert seen.check().passed
    assert [(found.host, found.name) for found in seen.layers] == [("sdpa", "self_attn")]


@pytest.mark.parametrize("nested_by", ["the user", "a class-level patch of someone else"])
def test_a_forward_that_someone_replaced_keeps_its_numbers_and_is_refused(nested_by, monkeypatch):
    layer, x = encoder(1).layers[0], random(N, S, 14)
    plain = layer.forward
    if nested_by == "the user":
        layer.forward = lambda src: plain(src) * 3
    else:
        monkeypatch.setattr(nn.TransformerEncoderLayer, "forward", lambda self, src: plain(src) * 3)
    with torch.no_grad():
        with (
            pytest.raises(
                UnsupportedAttentionError, match=r"its forward, torch's nn.TransformerEncoderLayer.forward, was"
            ),
            observe(layer),
        ):
            layer(x)
        with pytest.warns(UserWarning, match="left out"), observe(layer, unsupported="skip"):
            during = layer(x)
        assert same(during, layer(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_of_the_users_own():
    model = encoder(2)
    x = torch.nested.nested_tensor([random(7, 14), random(5, 14, seed=1)])
    with torch.no_grad():
        before = model(x)
        with observe(model) as seen:
            during = model(x)
    assert same(before, during)
    assert seen.check().passed
    assert torch.equal(seen.layers[0].mask.valid, padded(7, 5).bool())


def test_dropout_cannot_be_compared():
    module = attention(dropout=0.3).train()
    x = random(L, N, 15)
    seen = observed(module, x, x, x, grad=True)
    with pytest.raises(CheckError, match=r"1 of 1 layers.*\n.*layer 0 .*dropout was on.*model.eval\(\)"):
        seen.check()
    assert observed(attention(dropout=0.3), x, x, x).check().passed


def test_gradients_are_the_same():
    def gradients(watched):
        model = encoder(2, dropout=0.2).train()
        x = random(N, S, 14).requires_grad_()
        torch.manual_seed(11)
        if watched:
            with observe(model):
                y = model(x, src_key_padding_mask=HIDDEN_KEYS)
        else:
            y = model(x, src_key_padding_mask=HIDDEN_KEYS)
        y.square().sum().backward()
        return [y, x.grad, *(parameter.grad for parameter in model.parameters())]

    assert same(gradients(watched=False), gradients(watched=True))


def test_a_mode_of_the_users_own():
    from torch.overrides import BaseTorchFunctionMode

    model, x = encoder(2), random(N, S, 14)
    with torch.no_grad(), BaseTorchFunctionMode():
        before = model(x)
        with observe(model) as outer:
            during = model(x)
        assert same(before, during)
    with torch.no_grad(), observe(model) as inner, BaseTorchFunctionMode():
        assert same(before, model(x))
    for seen in (outer, inner):
        assert seen.check().passed
        assert len(seen.layers) == 2
    assert nothing_patched()


def test_autocast_and_half():
    model, x = encoder(2), random(N, S, 14)
    with torch.autocast("cpu", torch.bfloat16):
        assert observed(model, x).check().passed
    assert observed(model.bfloat16(), x.bfloat16()).check().passed


def test_queries_that_see_nothing():
    module = attention()
    x = random(L, N, 15)
    hidden = torch.zeros(L, L, dtype=torch.bool)
    hidden[3] = True
    seen = observed(module, x, x, x, attn_mask=hidden, need_weights=True, options={"statistics": whole_rows(L)})
    assert seen.check().passed
    assert not seen.layers[0].statistics.rows.isnan().any()
    assert seen.layers[0].statistics.visible[0, 0, 3] == 0


def test_static_keys_are_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = attention()

        def forward(self, x):
            inner = self.inner
            static = torch.zeros(N * 5, L, 3)
            return F.multi_head_attention_forward(
                x, x, x, 15, 5, inner.in_proj_weight, inner.in_proj_bias, None, None, False, 0.0,
                inner.out_proj.weight, inner.out_proj.bias, training=False, static_k=static,
            )[0]  # fmt: skip

    model = Own()
    with pytest.raises(UnsupportedAttentionError, match="given static_k"), observe(model):
        model(random(L, N, 15))
    assert nothing_patched()


@pytest.mark.parametrize("wrong", [True, False])
@pytest.mark.parametrize("damage", ["swapped heads", "shifted mask", "no scale"])
def test_the_check_can_fail(damage, wrong, monkeypatch):
    """Negative controls: what the adapter understood is made wrong in one way, and the check must say so."""
    from dataclasses import replace

    from multihead.lens.adapters import torch_mha

    def damaged(q, k, v, *, mask=None, bias=None, **rest):
        call = plain(q, k, v, mask=mask, bias=bias, **rest)
        if not wrong:
            return call
        if damage == "swapped heads":
            return replace(call, v=call.v.roll(1, 1))
        if damage == "shifted mask":
            return replace(call, mask=masks.padding(call.mask.valid.roll(1, 1)))
        return replace(call, scale=1.0)

    plain = torch_mha.call_of
    monkeypatch.setattr(torch_mha, "call_of", damaged)
    model, x = encoder(2), random(N, S, 14)
    for options in ({}, {"heads": [1], "queries": [2, 3]}):
        with torch.no_grad(), observe(model, statistics=Statistics(), **options) as seen:
            model(x, src_key_padding_mask=HIDDEN_KEYS)
        if wrong:
            with pytest.raises(
                CheckError, match=r"2 of 2 layers do not agree.*\n.*layer 0 \(layers.0.self_attn\): DIFFERS"
            ):
                seen.check()
        else:
            assert seen.check().passed
