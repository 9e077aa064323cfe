"""torch's names: state dicts both ways, attributes, optimizers, and everything that copies or converts a module."""

import copy
import io
import operator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from multihead.torch_compat import MultiheadAttention
from tests.torch_compat.pairs import OTHER_DIMS, E, H, L, N, inputs, pair

KINDS = {
    "plain": {},
    "no bias": {"bias": False},
    "other dims": OTHER_DIMS,
    "other dims, no bias": OTHER_DIMS | {"bias": False},
    "extras": {"add_bias_kv": True, "add_zero_attn": True},
    "other dims, extras": OTHER_DIMS | {"add_bias_kv": True},
}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


class Model(nn.Module):
    """One attention below another module, so that its names have a prefix."""

    def __init__(self, kind, **options):
        super().__init__()
        self.before = nn.Linear(E, E)
        self.attention = kind(E, H, **options)
        self.after = nn.Linear(E, E)


def models(**options):
    torch.manual_seed(5)
    theirs = Model(nn.MultiheadAttention, **options)
    torch.manual_seed(6)
    return theirs, Model(MultiheadAttention, **options)


def parameters(module) -> dict:
    """Every parameter under torch's name, whoever's module it is."""
    return {name: operator.attrgetter(name)(module) for name in module.state_dict()}


def same(first: dict, second: dict) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@each_kind
class TestStateDict:
    def test_same_seed_same_layer_same_keys(self, options):
        torch.manual_seed(5)
        theirs = nn.MultiheadAttention(E, H, **options).state_dict()
        torch.manual_seed(5)
        ours = MultiheadAttention(E, H, **options).state_dict()
        assert same(theirs, ours)

    def test_both_ways_below_another_module(self, options):
        theirs, ours = models(**options)
        assert not same(theirs.state_dict(), ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        assert same(theirs.state_dict(), ours.state_dict())
        again, _ = models(**options)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        again.load_state_dict(ours.state_dict())
        assert same(theirs.state_dict(), again.state_dict())

    def test_assigned(self, options):
        theirs, _ = models(**options)
        with torch.device("meta"):
            ours = Model(MultiheadAttention, **options)
        ours.load_state_dict(theirs.state_dict(), assign=True)
        assert same(theirs.state_dict(), ours.state_dict())
        assert all(isinstance(parameter, nn.Parameter) for parameter in parameters(ours).values())
        assert ours.attention.out_proj.weight.data_ptr() == theirs.attention.out_proj.weight.data_ptr()
        tensors = inputs(ours.attention)
        torch.testing.assert_close(ours.attention(*tensors), theirs.attention(*tensors))

    def test_missing_and_unexpected_keys_have_torchs_names(self, options):
        theirs, ours = models(**options)
        for name in theirs.attention.state_dict():
            state = theirs.state_dict()
            state["attention.other"] = state.pop(f"attention.{name}")
            expected = theirs.load_state_dict(dict(state), strict=False)
            assert ours.load_state_dict(dict(state), strict=False) == expected
            assert expected.missing_keys == [f"attention.{name}"]
            with pytest.raises(
                RuntimeError, match=f"Missing key.*attention.{name}(.|\n)*Unexpected key.*attention.other"
            ):
                ours.load_state_dict(state)

    def test_a_missing_key_leaves_what_was_there(self, options):
        _, ours = models(**options)
        before = {name: parameter.clone() for name, parameter in parameters(ours.attention).items()}
        for assign in (False, True):
            ours.load_state_dict({}, strict=False, assign=assign)
            assert same(before, ours.attention.state_dict())

    def test_under_the_names_where_parameters_live(self, options):
        _, ours = models(**options)
        other, _ = pair(**options)
        ours.attention.load_state_dict(other.state_dict())
        copied = MultiheadAttention(E, H, **options)
        copied.load_state_dict(dict(ours.attention.named_parameters()))
        assert same(other.state_dict(), copied.state_dict())

    def test_copies_and_files(self, options):
        """A copy's hooks are the copy's own."""
        _, ours = models(**options)
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
            assert same(ours.state_dict(), other.state_dict())
            before = ours.attention.out_proj.weight.clone(), ours.state_dict()["attention.out_proj.weight"].clone()
            other.load_state_dict({name: torch.zeros_like(value) for name, value in ours.state_dict().items()})
            assert not any(value.any() for value in other.state_dict().values())
            assert torch.equal(before[0], ours.attention.out_proj.weight)
            assert any(value.any() for value in ours.attention.state_dict().values())

    def test_a_size_that_does_not_fit(self, options):
        theirs, ours = models(**options)
        state = theirs.state_dict()
        name = next(iter(theirs.attention.state_dict()))
        state[f"attention.{name}"] = torch.zeros(3, 5)
        with pytest.raises(RuntimeError, match="size mismatch for attention"):
            ours.load_state_dict(state)


@each_kind
class TestAttributes:
    def test_each_name_is_the_parameter_itself(self, options):
        theirs, ours = pair(**options)
        for name in (
            "in_proj_weight",
            "q_proj_weight",
            "k_proj_weight",
            "v_proj_weight",
            "in_proj_bias",
            "bias_k",
            "bias_v",
        ):
            torchs, own = getattr(theirs, name), getattr(ours, name)
            assert (torchs is None) == (own is None)
            if own is not None:
                assert own.shape == torchs.shape
                assert any(own is parameter for parameter in ours.parameters())

    def test_writing_in_place_and_assigning(self, options):
        theirs, ours = pair(**options)
        tensors = inputs(theirs)
        for name in ("in_proj_weight", "k_proj_weight", "in_proj_bias", "bias_v"):
            if getattr(theirs, name) is not None:
                with torch.no_grad():
                    nn.init.constant_(getattr(theirs, name), 0.3)
                    nn.init.constant_(getattr(ours, name), 0.3)
                torch.testing.assert_close(ours(*tensors)[0], theirs(*tensors)[0])
                fresh = nn.Parameter(torch.randn_like(getattr(theirs, name)))
                setattr(theirs, name, fresh)
                setattr(ours, name, fresh)
                assert getattr(ours, name) is fresh
                torch.testing.assert_close(ours(*tensors)[0], theirs(*tensors)[0])

    def test_optimizers_count_parameters_as_with_torch(self, options):
        """A checkpoint of an optimizer knows parameters by their number."""
        theirs, ours = pair(**options)
        first, second = (torch.optim.Adam(module.parameters(), lr=0.1) for module in (theirs, ours))
        assert [p.shape for p in theirs.parameters()] == [p.shape for p in ours.parameters()]
        tensors = inputs(theirs)

        def step(module, optimizer):
            optimizer.zero_grad()
            module(*tensors)[0].square().sum().backward()
            optimizer.step()

        step(theirs, first)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        ours.load_state_dict(theirs.state_dict())
        step(theirs, first), step(ours, second)
        for name, parameter in theirs.state_dict().items():
            # where a gradient is 0 but for rounding, Adam divides rounding by rounding
            sure = operator.attrgetter(name)(theirs).grad.abs() > 1e-3
            torch.testing.assert_close(ours.state_dict()[name][sure], parameter[sure])

    def test_conversions(self, options):
        theirs, ours = pair(**options)
        ours.double()
        assert {value.dtype for value in ours.state_dict().values()} == {torch.float64}
        ours.float().requires_grad_(False)
        assert not any(parameter.requires_grad for parameter in parameters(ours).values())
        with torch.device("meta"):
            empty = MultiheadAttention(E, H, **options)
        assert all(parameter.is_meta for parameter in parameters(empty).values())
        empty.to_empty(device="cpu").load_state_dict(theirs.state_dict())
        assert same(theirs.state_dict(), empty.state_dict())


def test_none_can_be_assigned():
    theirs, ours = pair()
    theirs.in_proj_bias = ours.in_proj_bias = None
    assert ours.in_proj_bias is None
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.q_proj_weight = None  # what it is already
    tensors = inputs(theirs)
    torch.testing.assert_close(ours(*tensors), theirs(*tensors))


def test_a_parameter_without_a_place_is_refused():
    with pytest.raises(AttributeError, match=r"q_proj_weight cannot be a Parameter: .* kdim=15 .* no q_proj"):
        MultiheadAttention(E, H).q_proj_weight = nn.Parameter(torch.zeros(E, E))
    with pytest.raises(AttributeError, match=r"in_proj_weight cannot be a Parameter: .* kdim=13 .* no in_proj"):
        MultiheadAttention(E, H, **OTHER_DIMS).in_proj_weight = nn.Parameter(torch.zeros(3 * E, E))


def test_shared_weights_stay_shared():
    """Two attentions with one in-projection, tied under torch's name."""
    first, second = MultiheadAttention(E, H), MultiheadAttention(E, H)
    second.in_proj_weight = first.in_proj_weight
    model = nn.ModuleList([first, second])
    assert len(list(model.parameters())) == 7
    copied = copy.deepcopy(model)
    assert copied[0].in_proj_weight is copied[1].in_proj_weight is not first.in_proj_weight
    assert [name for name in model.state_dict() if "in_proj" in name] == [
        "0.in_proj_weight", "0.in_proj_bias", "1.in_proj_weight", "1.in_proj_bias",
    ]  # fmt: skip


def test_parametrizations_stand_on_the_projection():
    """torch.nn.utils.parametrize, and pruning, which both replace a parameter by a function of others."""

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    for options in ({}, OTHER_DIMS):
        theirs, ours = pair(**options)
        tensors, names = inputs(theirs), ["in_proj_weight"] if not options else ["q_proj_weight", "v_proj_weight"]
        for name in names:
            parametrize.register_parametrization(theirs, name, Doubled())
            parametrize.register_parametrization(getattr(ours, name.removesuffix("_weight")), "weight", Doubled())
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
        torch.testing.assert_close(ours(*tensors), theirs(*tensors))
    theirs, ours = pair()
    mask = torch.arange(E).expand(3 * E, E) % 2
    prune.custom_from_mask(theirs, "in_proj_weight", mask)
    prune.custom_from_mask(ours.in_proj, "weight", mask)
    tensors = inputs(theirs)
    torch.testing.assert_close(ours(*tensors), theirs(*tensors))


def test_named_parameters_say_where_they_live():
    assert [name for name, _ in MultiheadAttention(E, H, add_bias_kv=True).named_parameters()] == [
        "in_proj.weight", "in_proj.bias", "vectors.bias_k", "vectors.bias_v", "out_proj.weight", "out_proj.bias",
    ]  # fmt: skip


def test_distributed_checkpoints_of_models_and_optimizers():
    """torch.distributed.checkpoint finds parameters by walking their names."""
    from torch.distributed.checkpoint import state_dict as checkpoint

    theirs, ours = models()
    optimizer = torch.optim.Adam(ours.parameters())
    x = torch.randn(L, N, E)
    ours.after(ours.attention(*[ours.before(x)] * 3)[0]).square().sum().backward()
    optimizer.step()
    assert list(checkpoint.get_model_state_dict(ours)) == list(theirs.state_dict())
    checkpoint.set_model_state_dict(ours, theirs.state_dict())
    assert same(theirs.state_dict(), ours.state_dict())
    saved = copy.deepcopy(checkpoint.get_optimizer_state_dict(ours, optimizer))
    optimizer.state.clear()
    checkpoint.set_optimizer_state_dict(ours, optimizer, saved)
    moment = optimizer.state[ours.attention.in_proj_weight]["exp_avg"]
    assert moment.any()
    assert torch.equal(moment, saved["state"]["attention.in_proj.weight"]["exp_avg"])
