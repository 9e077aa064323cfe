"""What takes modules apart: adapters, quantisers, torch.func. Compilers and exporters: ``tests/as_users_run``."""

import copy
import warnings

import pytest
import torch
from torch import nn

from multihead import torch_compat
from multihead.torch_compat import MultiheadAttention
from tests.torch_compat.pairs import OTHER_DIMS, E, L, N, S, inputs, pair, some_seen


class TestAdapters:
    """pytorch#78109: low-rank adapters (Hu et al. 2021) by peft."""

    @pytest.fixture(autouse=True)
    def peft(self):
        return pytest.importorskip("peft")

    def adapted(self, module, peft, *targets):
        config = peft.LoraConfig(target_modules=list(targets), r=2, init_lora_weights=False)
        return peft.get_peft_model(nn.ModuleDict({"attention": module}), config)

    def test_78109_adapters_learn(self, peft):
        for options, targets in (
            ({}, ["in_proj", "out_proj"]),
            (OTHER_DIMS, ["q_proj", "k_proj", "v_proj", "out_proj"]),
        ):
            _, ours = pair(**options)
            tensors = inputs(ours)
            before = ours(*tensors)[0]
            model = self.adapted(ours, peft, *targets)
            output = ours(*tensors)[0]
            assert (output - before).abs().max() > 0.01
            output.square().sum().backward()
            learned = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
            assert len(learned) == 2 * len(targets)
            assert all(parameter.grad.any() for parameter in learned)
            assert not any(p.grad is not None for name, p in model.named_parameters() if "lora_" not in name)
            merged = model.merge_and_unload()["attention"]
            torch.testing.assert_close(merged(*tensors)[0], output)
            assert list(merged.state_dict()) == list(pair(**options)[0].state_dict())

    def test_78109_torchs_adapter_does_nothing(self, peft):
        """torch 2.13: peft wraps out_proj, and the wrapper is never called."""
        theirs, _ = pair()
        tensors = inputs(theirs)
        before = theirs(*tensors)[0]
        model = self.adapted(theirs, peft, "out_proj")
        output = theirs(*tensors)[0]
        assert torch.equal(output, before)
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert not output.requires_grad


class TestQuantisers:
    """pytorch#118165."""

    def test_118165_weights_of_eight_bits(self):
        """torch 2.13: torchao finds nothing to quantise in torch's module; ours has its four matrices in int8."""
        quantization = pytest.importorskip("torchao.quantization")
        theirs, ours = pair(64, 4, batch_first=True)
        exact = copy.deepcopy(ours)
        for module in (theirs, ours):
            quantization.quantize_(module, quantization.Int8WeightOnlyConfig())
        assert {type(parameter) for parameter in theirs.parameters()} == {nn.Parameter}
        for weight in (ours.in_proj_weight, ours.out_proj.weight):
            assert type(weight) is not nn.Parameter
            assert weight.qdata.dtype == torch.int8
        x, y = torch.randn(N, L, 64), torch.randn(N, S, 64)
        with torch.no_grad():
            for tensors in ((x, x, x), (x, y, y), (y, x, x.clone())):
                output, wanted = ours(*tensors)[0], exact(*tensors)[0]
                error = (output - wanted).norm() / wanted.norm()
                assert 0 < error < 0.05
        state = ours.state_dict()
        assert list(state) == list(theirs.state_dict())
        again = MultiheadAttention(64, 4, batch_first=True)
        again.load_state_dict(state, assign=True)
        with torch.no_grad():
            assert torch.equal(again(x, y, y)[0], ours(x, y, y)[0])

    def test_118165_weights_that_cannot_be_cut(self):
        """Packed weights need not know how to give some of their rows: then in_proj is called whole."""

        class Packed(torch.Tensor):
            def __tensor_flatten__(self):
                return [], None

            @staticmethod
            def __tensor_unflatten__(*_):
                raise NotImplementedError

            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                if func is torch.Tensor.__getitem__ and isinstance(args[0], Packed):
                    raise NotImplementedError("packed")
                with torch._C.DisableTorchFunctionSubclass():
                    found = func(*args, **(kwargs or {}))
                return found.as_subclass(cls) if func is torch.Tensor.detach else found

        _, ours = pair()
        tensors = inputs(ours)
        expected = ours(*tensors)
        ours.in_proj.weight = nn.Parameter(ours.in_proj.weight.detach().as_subclass(Packed), requires_grad=False)
        assert isinstance(ours.in_proj_weight, Packed)
        with pytest.raises(NotImplementedError, match="packed"):
            ours.in_proj_weight[:3]
        torch.testing.assert_close(ours(*tensors), expected)

    def test_118165_after_replacing(self):
        quantization = pytest.importorskip("torchao.quantization")
        layer = torch_compat.replace(nn.TransformerEncoderLayer(64, 4, 32, batch_first=True, dropout=0.0)).eval()
        x = torch.randn(N, L, 64)
        with torch.no_grad():
            wanted = layer(x)
            quantization.quantize_(layer.self_attn, quantization.Int8WeightOnlyConfig())
            assert layer.self_attn.out_proj.weight.qdata.dtype == torch.int8
            assert 0 < (layer(x) - wanted).norm() / wanted.norm() < 0.05

    def test_118165_dynamically(self):
        """torch's own quantiser swaps the modules."""
        _, ours = pair(batch_first=True)
        x, y = torch.randn(N, L, E), torch.randn(N, S, E)
        wanted = ours(x, x, x)[0], ours(x, y, y)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(ours, {nn.Linear})
        for part in (quantised.in_proj, quantised.out_proj):
            assert isinstance(part, torch.ao.nn.quantized.dynamic.Linear)
        for output, exact in zip((quantised(x, x, x)[0], quantised(x, y, y)[0]), wanted, strict=True):
            assert 0 < (output - exact).norm() / exact.norm() < 0.1


def test_mapped_over_a_batch():
    """torch.func: one sample at a time, with a mask of its own, equals all of them."""
    _, ours = pair(batch_first=True)
    x = torch.randn(5, N, L, E)
    masks = some_seen(5, L, L, seed=2)
    for mask in (masks, torch.zeros(5, L, L).masked_fill(masks, -torch.inf)):
        found = torch.func.vmap(lambda sample, mask: ours(sample, sample, sample, attn_mask=mask))(x, mask)
        expected = [ours(sample, sample, sample, attn_mask=m) for sample, m in zip(x, mask, strict=True)]
        for mine, wanted in zip(found, zip(*expected, strict=True), strict=True):
            torch.testing.assert_close(mine, torch.stack(wanted))


def test_called_with_other_parameters():
    """torch.func.functional_call takes them by the names under which they live."""
    theirs, ours = pair()
    tensors = inputs(theirs)
    doubled = {name: 2 * parameter for name, parameter in ours.named_parameters()}
    found = torch.func.functional_call(ours, doubled, tensors)
    twice = {name: 2 * parameter for name, parameter in theirs.named_parameters()}
    torch.testing.assert_close(found, torch.func.functional_call(theirs, twice, tensors))
    torch.testing.assert_close(ours(*tensors), theirs(*tensors))
