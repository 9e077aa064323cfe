"""The functions that users call."""

import pytest
import torch

import multihead as mh
from multihead.biases import Bias
from multihead.core import AttentionCall, reference
from tests.accuracy import OPTIONS, check, mask_examples, plain, random_call


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_attention_and_inspect_give_the_same_output(mask, options):
    call = random_call(mask=mask, **options)
    arguments = {"mask": mask, "bias": call.bias, "scale": call.scale, "softcap": call.softcap, "sinks": call.sinks}
    output = mh.attention(call.q, call.k, call.v, **arguments)
    check(output, reference(call).output, plain(call).output)
    seen_output, seen = mh.inspect(call.q, call.k, call.v, statistics=mh.Statistics.every(), **arguments)
    check(seen_output, reference(call).output, plain(call).output)
    assert seen.entropy.shape == (2, 6, 7)


def test_a_boolean_tensor_is_a_mask():
    call = random_call()
    allowed = mh.masks.causal().dense(7, 11)
    torch.testing.assert_close(
        mh.attention(call.q, call.k, call.v, mask=allowed), mh.attention(call.q, call.k, call.v, mask=mh.masks.causal())
    )


def test_inspect_is_differentiable_and_its_statistics_are_not():
    call = random_call(requires_grad=True)
    output, seen = mh.inspect(call.q, call.k, call.v, statistics=mh.Statistics.every())
    output.sum().backward()
    assert call.q.grad is not None
    assert not any(value.requires_grad for value in seen.named().values())


def test_a_torch_function_mode_sees_every_attention_once():
    from multihead.kernels import attend, attend_with_statistics, attend_with_weights

    class Spy(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (attend, attend_with_statistics, attend_with_weights):
                self.seen.append(args[0])
            return function(*args, **(kwargs or {}))

    call = random_call()
    with Spy() as spy:
        mh.attention(call.q, call.k, call.v)
        mh.attention(call.q, call.k, call.v, softcap=2.0)
        mh.inspect(call.q, call.k, call.v, softcap=3.0)
        attend_with_weights(random_call(softcap=4.0), mean=True)
    assert [type(seen) for seen in spy.seen] == [AttentionCall] * 4
    assert [seen.softcap for seen in spy.seen] == [None, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("statistics", [{"top": 8}, None, "entropy"])
def test_inspect_refuses_what_are_no_statistics(as_users_run, statistics):
    call = random_call()
    with pytest.raises(TypeError, match=r"statistics is .*, expected a multihead\.Statistics: pass "):
        mh.inspect(call.q, call.k, call.v, statistics=statistics)


def test_a_bias_may_be_an_object(as_users_run):
    class Distance(Bias):
        def __init__(self, slopes):
            self.slopes = slopes

        def values(self, queries, keys, sizes):
            distance = (queries[:, None] + sizes.offset - keys).abs()
            return -self.slopes[None, :, None, None] * distance

        def tensors(self):
            yield self.slopes

        def over(self, tensors):
            return Distance(next(tensors))

    call, bias = random_call(), Distance(torch.rand(6))
    output = mh.attention(call.q, call.k, call.v, bias=bias)
    expected = AttentionCall(call.q, call.k, call.v, bias=bias.dense(call.sizes))
    check(output, reference(expected).output, plain(expected).output)
    seen_output, _ = mh.inspect(call.q, call.k, call.v, bias=bias)
    check(seen_output, reference(expected).output, plain(expected).output)


@pytest.mark.parametrize(
    ("shape", "advised"),
    [((2, 7, 11), lambda mask: mask[:, None]), ((2, 11), mh.masks.padding)],
)
def test_a_mask_that_was_meant_otherwise(shape, advised):
    call, mask = random_call(), torch.ones(shape, dtype=torch.bool)
    advice = "pass mask\\[:, None\\]" if len(shape) == 3 else "pass masks.padding\\(mask\\)"
    with pytest.raises(ValueError, match=advice):
        mh.attention(call.q, call.k, call.v, mask=mask)
    assert torch.isfinite(mh.attention(call.q, call.k, call.v, mask=advised(mask))).all()
