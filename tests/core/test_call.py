"""A call that does not fit is refused with a sentence that says what came and what was expected."""

import pytest
import torch

from multihead import masks
from multihead.core import AttentionCall, as_mask

Q, K, V = torch.zeros(2, 6, 7, 5), torch.zeros(2, 3, 11, 5), torch.zeros(2, 3, 11, 13)


def test_sizes_group_and_scale():
    call = AttentionCall(Q, K, V)
    assert (call.sizes.batch, call.sizes.heads, call.sizes.queries, call.sizes.keys) == (2, 6, 7, 11)
    assert call.sizes.offset == 4
    assert call.group == 2
    assert call.scale == call.factor == pytest.approx(5**-0.5)
    assert AttentionCall(Q, K, V, scale=0.25).factor == 0.25


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((Q[0], K, V), {}, r"q has shape \(6, 7, 5\), expected four axes"),
        ((Q, K[:1], V), {}, "k has batch 1 but q has 2"),
        ((Q, K[:, :, :4], V), {}, r"k \(2, 3, 4, 5\) and v \(2, 3, 11, 13\) differ in heads or tokens"),
        ((Q, K[..., :4], V), {}, r"q \(2, 6, 7, 5\) and k \(2, 3, 11, 4\) differ in their last axis"),
        (
            (Q, K[:, :2].repeat(1, 2, 1, 1), V[:, :2].repeat(1, 2, 1, 1)),
            {},
            "num_heads=6 is not a multiple of num_kv_heads=4.*try 1, 2, 3 or 6",
        ),
        ((Q.to("meta"), K, V), {}, "k is on cpu but q is on meta"),
        ((Q, K, V), {"mask": masks.dense(torch.ones(11, 7, dtype=torch.bool))}, "does not broadcast.*is it transposed"),
        (
            (Q, K, V),
            {"mask": masks.dense(torch.ones(7, 12, dtype=torch.bool))},
            r"mask of shape \(7, 12\) does not broadcast",
        ),
        (
            (Q, K, V),
            {"mask": masks.padding(torch.ones(3, 11, dtype=torch.bool))},
            "padding mask of shape .* does not fit batch 2 and 11 keys",
        ),
        ((Q, K, V), {"mask": masks.documents(torch.zeros(2, 7, dtype=torch.int64))}, "document numbers of the keys"),
        (
            (Q, K, V),
            {"mask": masks.causal() & masks.padding(torch.ones(2, 11, dtype=torch.bool, device="meta"))},
            r"mask is on meta but q is on cpu: move it with \.to\('cpu'\)",
        ),
        ((Q, K, V), {"bias": torch.zeros(2, 5, 7, 11)}, "bias of shape .* does not broadcast"),
        ((Q, K, V), {"bias": torch.zeros(1, 2, 6, 7, 11)}, "bias of shape .* does not broadcast"),
        ((Q, K, V), {"scale": float("nan")}, "scale=nan is no finite number"),
        ((Q, K, V), {"softcap": 0.0}, "softcap=0.0 is no positive number"),
        ((Q, K, V), {"sinks": torch.zeros(3)}, r"sinks have shape \(3\), expected \(6,\)"),
        ((Q, K, V), {"dropout": 1.0}, "dropout=1.0 is no probability below 1"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_refuses_with_a_sentence(tensors, options, message):
    with pytest.raises(ValueError, match=message):
        AttentionCall(*tensors, **options)


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ((Q, K.double(), V), {}, "k has dtype torch.float64 but q has torch.float32: convert one"),
        (
            (Q, K, V),
            {"bias": torch.ones(7, 11, dtype=torch.int64)},
            "bias has dtype torch.int64.*pass a boolean tensor as mask",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_refuses_types_with_a_sentence(tensors, options, message):
    with pytest.raises(TypeError, match=message):
        AttentionCall(*tensors, **options)


@pytest.mark.usefixtures("as_users_run")
def test_mask_of_another_type():
    assert as_mask(None) is None
    with pytest.raises(TypeError, match=r"mask has dtype torch\.float32, expected torch.bool: True means may attend"):
        as_mask(torch.zeros(7, 11))
    with pytest.raises(TypeError, match="mask is a str"):
        as_mask("causal")
