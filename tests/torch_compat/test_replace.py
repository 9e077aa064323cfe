"""Ours in the place of torch's module, inside models that exist already."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from multihead import torch_compat
from multihead.lens import observe
from multihead.torch_compat import MultiheadAttention
from tests.torch_compat.pairs import OTHER_DIMS, E, H, L, N, S, inputs, pair

WIDTH, HEADS, HIDDEN = 14, 2, 23
PADDING = torch.arange(L) >= torch.tensor([[3], [5]])
LATER = torch.ones(L, L, dtype=torch.bool).triu(1)


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, **options)


def as_numbers(mask):
    return torch.zeros(mask.shape).masked_fill(mask, -torch.inf)


def check_replaced(model, *tensors, **arguments):
    """Assert that the model computes after the replacement what it did before, gradients included."""

    def answers():
        model.zero_grad()
        output = model(*tensors, **arguments)
        (output * torch.linspace(-1, 2, output.numel()).view(output.shape)).sum().backward()
        return [output.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    before, parameters, keys = answers(), list(model.parameters()), list(model.state_dict())
    assert torch_compat.replace(model) is model
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    assert len(parameters) == len(list(model.parameters()))
    assert all(mine is other for mine, other in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(answers(), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
class TestTorchsModels:
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("bias", [True, False])
    def test_encoder_layer(self, training, batch_first, norm_first, bias):
        options = {"batch_first": batch_first, "norm_first": norm_first, "bias": bias}
        x = torch.randn((N, L, WIDTH) if batch_first else (L, N, WIDTH))
        for masked in ({}, {"src_key_padding_mask": PADDING}, {"src_mask": LATER, "src_key_padding_mask": PADDING}):
            check_replaced(encoder_layer(**options).train(training), x, **masked)
        check_replaced(encoder_layer(**options).train(training), x[0])

    def test_encoder(self, training):
        for options in (
            {"src_key_padding_mask": PADDING},
            {"mask": LATER, "is_causal": True},
            {"mask": as_numbers(LATER)},
        ):
            model = nn.TransformerEncoder(encoder_layer(batch_first=True), 2, norm=nn.LayerNorm(WIDTH))
            check_replaced(model.train(training), torch.randn(N, L, WIDTH), **options)

    def test_decoder(self, training):
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True)
        target, memory = torch.randn(N, L, WIDTH), torch.randn(N, S, WIDTH)
        for options in ({}, {"tgt_mask": LATER, "memory_key_padding_mask": torch.arange(S).expand(N, S) > 7}):
            check_replaced(nn.TransformerDecoder(copy.deepcopy(layer), 2).train(training), target, memory, **options)

    def test_transformer(self, training):
        sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": HIDDEN, "dropout": 0.0}
        model = nn.Transformer(WIDTH, HEADS, **sizes, batch_first=True).train(training)
        masked = {"src_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING}
        tensors = torch.randn(N, L, WIDTH), torch.randn(N, 5, WIDTH)
        check_replaced(model, *tensors, tgt_mask=LATER[:5, :5], **masked)
        assert sum(isinstance(module, MultiheadAttention) for module in model.modules()) == 6

    @pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}, OTHER_DIMS])
    def test_a_model_of_ones_own(self, training, options):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.before, self.attention = nn.Linear(E, E), pair(**options)[0]

            def forward(self, query, key, value):
                return self.attention(self.before(query), key, value)[0]

        model = Model().train(training)
        check_replaced(model, *inputs(model.attention))


class TestEvaluation:
    """The fast path, which torch takes without gradients, is taken no more."""

    def test_outputs_are_those_of_the_fast_path_at_real_tokens(self):
        model, x = nn.TransformerEncoder(encoder_layer(batch_first=True), 2).eval(), torch.randn(N, L, WIDTH)
        with torch.no_grad():
            fast = [model(x), model(x, mask=LATER), model(x, src_key_padding_mask=PADDING)]
            torch_compat.replace(model)
            ours = [model(x), model(x, mask=LATER), model(x, src_key_padding_mask=PADDING)]
        torch.testing.assert_close(ours[:2], fast[:2])
        torch.testing.assert_close(ours[2][~PADDING], fast[2][~PADDING])

    def test_hooks_fire(self):
        model, x, fired = nn.TransformerEncoder(encoder_layer(batch_first=True), 2).eval(), torch.randn(N, L, WIDTH), []
        torch_compat.replace(model)
        for number, layer in enumerate(model.layers):
            for name in ("in_proj", "attend", "out_proj"):
                part = layer.self_attn.get_submodule(name)
                part.register_forward_hook(lambda *_, what=(number, name): fired.append(what))
        with torch.no_grad():
            model(x, src_key_padding_mask=PADDING)
        assert fired == [(number, name) for number in range(2) for name in ("in_proj", "attend", "out_proj")]

    def test_the_lens_sees_it(self):
        model, x = nn.TransformerEncoder(encoder_layer(batch_first=True), 2).eval(), torch.randn(N, L, WIDTH)
        torch_compat.replace(model)
        with torch.no_grad(), observe(model) as seen:
            model(x, src_key_padding_mask=PADDING)
        seen.check()
        assert [(layer.host, layer.name) for layer in seen.layers] == [
            ("multihead", f"layers.{number}.self_attn") for number in range(2)
        ]

    def test_layers_stacked_afterwards(self):
        """nn.TransformerEncoder asks its layer whether nested tensors would do, and says why not."""
        layer = torch_compat.replace(encoder_layer(batch_first=True))
        with pytest.warns(UserWarning, match=r"self_attn._qkv_same_embed_dim was not True"):
            model = nn.TransformerEncoder(layer, 2).eval()
        with torch.no_grad():
            assert model(torch.randn(N, L, WIDTH), src_key_padding_mask=PADDING).isfinite().all()

    def test_a_layer_exchanged_by_hand_is_refused_nested_tensors_in_words(self):
        model = nn.TransformerEncoder(encoder_layer(batch_first=True), 2).eval()
        for layer in model.layers:
            layer.self_attn = MultiheadAttention(WIDTH, HEADS, batch_first=True)
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match=r"nested tensor: .* build that with enable_nested_tensor=False"),
        ):
            model(torch.randn(N, L, WIDTH), src_key_padding_mask=PADDING)


class TestWhatStays:
    def test_a_module_alone_is_returned_new(self):
        for options in ({}, {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True}, OTHER_DIMS):
            theirs, _ = pair(**options)
            ours = torch_compat.replace(theirs)
            assert type(ours) is MultiheadAttention
            assert all(a is b for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))
            tensors = inputs(theirs)
            torch.testing.assert_close(ours(*tensors), theirs(*tensors))

    def test_state_of_the_module(self):
        theirs = nn.MultiheadAttention(E, H, dropout=0.25, batch_first=True, dtype=torch.float64).eval()
        theirs.in_proj_weight.requires_grad_(False)
        theirs.out_proj.train()
        theirs.number = 7
        ours = torch_compat.replace(theirs)
        assert (ours.dropout, ours.batch_first, ours.training, ours.out_proj.training) == (0.25, True, False, True)
        assert [parameter.requires_grad for parameter in ours.parameters()] == [False, True, True, True]
        assert {parameter.dtype for parameter in ours.parameters()} == {torch.float64}
        assert ours.number == 7
        assert vars(ours).keys() - {"number"} == vars(MultiheadAttention(E, H)).keys()
        with torch.device("meta"):
            assert torch_compat.replace(nn.MultiheadAttention(E, H)).in_proj_weight.is_meta

    def test_random_numbers_are_not_drawn(self):
        theirs, before = pair()[0], torch.get_rng_state()
        torch_compat.replace(theirs)
        assert torch.equal(before, torch.get_rng_state())

    def test_an_optimizer_goes_on(self):
        model = encoder_layer()
        other, x = copy.deepcopy(model), torch.randn(L, N, WIDTH)

        def train(model, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()

        optimizers = [torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9) for module in (model, other)]
        train(model, optimizers[0]), train(other, optimizers[1])
        torch_compat.replace(model)
        train(model, optimizers[0]), train(other, optimizers[1])
        for mine, torchs in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, torchs)

    def test_hooks_on_calls(self):
        theirs, ran = pair()[0], []
        hook = theirs.register_forward_hook(
            lambda module, args, kwargs, out: ran.append((type(module), *kwargs)), with_kwargs=True
        )
        theirs.register_forward_pre_hook(lambda *_: ran.append("before"))
        theirs.register_full_backward_hook(lambda *_: ran.append("backward"))
        theirs.out_proj.register_forward_hook(lambda *_: ran.append("out_proj"))
        ours = torch_compat.replace(theirs)
        x, _, _ = inputs(ours)
        x.requires_grad_()
        ours(x, x, x, need_weights=False)[0].sum().backward()
        assert ran == ["before", "out_proj", (MultiheadAttention, "need_weights"), "backward"]
        hook.remove()
        ran.clear()
        ours(x, x, x)
        assert ran == ["before", "out_proj"]

    def test_what_stands_at_out_proj(self):
        """torch's own class of it hides from quantisers: a plain one takes its place; anything else stays as it is."""
        theirs, _ = pair()
        ours = torch_compat.replace(theirs)
        assert type(ours.out_proj) is nn.Linear
        ours.out_proj.bias = None
        assert theirs.out_proj.bias is not None
        theirs.out_proj = nn.Sequential(nn.Linear(E, E))
        assert torch_compat.replace(theirs).out_proj is theirs.out_proj

    def test_a_module_in_several_places_stays_one(self):
        shared, _ = pair()
        model = nn.ModuleDict({"first": shared, "list": nn.ModuleList([shared, pair()[0]])})
        torch_compat.replace(model)
        assert model["first"] is model["list"][0] is not model["list"][1]
        assert len(list(model.parameters())) == 8

    def test_an_encoder_without_ours_is_left_alone(self):
        model = nn.ModuleList([nn.TransformerEncoder(encoder_layer(batch_first=True), 1), pair()[0]])
        part = nn.ModuleList([model[1]])
        torch_compat.replace(part)
        assert model[0].use_nested_tensor
        torch_compat.replace(model[0])
        assert not model[0].use_nested_tensor


def subclass():
    class Mine(nn.MultiheadAttention):
        pass

    return Mine(E, H)


def own_forward():
    module = pair()[0]
    module.forward = module.forward
    return module


def parametrized():
    module = pair()[0]
    parametrize.register_parametrization(module, "in_proj_weight", nn.Identity())
    return module


def pruned():
    module = pair()[0]
    prune.l1_unstructured(module, "in_proj_weight", 3)
    return module


def state_hook():
    module = pair()[0]
    module.register_state_dict_pre_hook(lambda *_: None)
    return module


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (subclass, "it is of type Mine, whose forward and parameters may be its own"),
            (own_forward, "its forward was replaced by someone else"),
            (parametrized, "it is of type ParametrizedMultiheadAttention"),
            (pruned, "it holds in_proj_weight_mask, in_proj_weight_orig, which torch's own has not"),
            (state_hook, "it has hooks on its state_dict"),
            (lambda: nn.MultiheadAttention(E, H, dropout=1.0), "its dropout=1.0 is no probability below 1"),
        ],
    )
    def test_what_may_be_more_than_torchs_own(self, make, reason):
        model = nn.ModuleDict({"good": pair()[0], "bad": make()})
        with pytest.raises(ValueError, match=rf"nothing was replaced, because of bad \({reason}.*\). Undo that, or"):
            torch_compat.replace(model)
        assert type(model["good"]) is nn.MultiheadAttention
        with pytest.raises(ValueError, match=rf"because of the model itself \({reason}"):
            torch_compat.replace(model["bad"])

    def test_an_adapter_around_it(self):
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(nn.Sequential(pair()[0]), peft.LoraConfig(target_modules=["0"], r=2))
        with pytest.raises(ValueError, match=r"0.base_layer \(an adapter stands around it and reaches into it: merge"):
            torch_compat.replace(model)
        merged = model.merge_and_unload()
        assert type(torch_compat.replace(merged)[0]) is MultiheadAttention

    def test_several_reasons_are_all_named(self):
        with pytest.raises(ValueError, match=r"because of 0 \(.*type Mine.*\); 2 \(its forward .*\)\. Undo"):
            torch_compat.replace(nn.ModuleList([subclass(), pair()[0], own_forward()]))

    def test_a_model_without_any(self, as_users_run):
        with pytest.raises(ValueError, match=r"^Linear has no torch.nn.MultiheadAttention to replace\.$"):
            torch_compat.replace(nn.Linear(2, 3))
        model = torch_compat.replace(encoder_layer())
        with pytest.raises(
            ValueError, match=r"TransformerEncoderLayer has no .* to replace; 1 of multihead's own stand"
        ):
            torch_compat.replace(model)
        with pytest.raises(TypeError, match=r"model is a str, expected a torch.nn.Module"):
            torch_compat.replace("model")
