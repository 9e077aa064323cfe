"""Each decision of ``conventions.py``, by name."""

import pytest
import torch

import multihead as mh
from multihead import masks
from multihead.conventions import checked_indices, default_scale, divisors, in_words, mismatch, nearest
from multihead.core import Statistics, reference
from multihead.kernels import measure
from tests.accuracy import random_call


def test_a_boolean_mask_says_true_where_a_query_may_see():
    call = random_call()
    only_key_3 = torch.zeros(7, 11, dtype=torch.bool)
    only_key_3[:, 3] = True
    output = mh.attention(call.q, call.k, call.v, mask=only_key_3)
    torch.testing.assert_close(output, call.v[:, :, 3:4].repeat_interleave(2, 1).expand_as(output))


def test_bias_is_added_after_scale_and_softcap():
    call = random_call(torch.float64, softcap=1.0, scale=3.0)
    bias = torch.full((7, 11), 10.0, dtype=torch.float64)
    bias[:, 0] = 12.0
    raw = torch.tanh(3.0 * call.q @ call.k.repeat_interleave(2, 1).transpose(-2, -1)) + bias
    expected = raw.softmax(-1) @ call.v.repeat_interleave(2, 1)
    torch.testing.assert_close(mh.attention(call.q, call.k, call.v, softcap=1.0, scale=3.0, bias=bias), expected)


def test_causal_is_bottom_right():
    assert masks.causal().dense(2, 5).tolist() == [[True] * 4 + [False], [True] * 5]


def test_a_row_that_sees_no_key_is_zero_and_never_nan():
    call = random_call(mask=masks.prefix(0), requires_grad=True)
    output = mh.attention(call.q, call.k, call.v, mask=call.mask)
    assert not output.any()
    output.sum().backward()
    assert not any(tensor.grad.any() for tensor in (call.q, call.k, call.v))
    _, seen = measure(call, Statistics(rows=(0,), top=1))
    assert (seen.lse == -torch.inf).all()
    assert not seen.entropy.any()
    assert not seen.visible.any()
    assert not seen.rows.any()
    assert (seen.top_keys == -1).all()


def test_query_head_h_reads_key_head_h_over_the_group():
    call = random_call(torch.float64)
    for head in range(6):
        one = mh.attention(
            call.q[:, head : head + 1], call.k[:, head // 2 : head // 2 + 1], call.v[:, head // 2 : head // 2 + 1]
        )
        torch.testing.assert_close(mh.attention(call.q, call.k, call.v)[:, head : head + 1], one)


def test_a_window_of_w_keys_is_the_own_and_the_ones_before():
    assert masks.sliding_window(2).dense(3, 3).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, True, True],
    ]


def test_weights_are_per_head_before_dropout_in_float32():
    call = random_call(torch.bfloat16, dropout=0.5)
    _, seen = measure(call, Statistics(rows=(0, 1)))
    assert seen.rows.dtype == torch.float32
    torch.testing.assert_close(seen.rows.double(), reference(call).weights[:, :, :2], atol=1e-5, rtol=1e-5)


def test_default_scale_is_one_over_the_root_of_the_head_dim():
    assert default_scale(64) == 0.125
    assert default_scale(0) == 1.0


def test_words_of_messages():
    assert (
        str(mismatch("num_heads", 12, "a divisor of 64", "try 8."))
        == "num_heads is 12, expected a divisor of 64: try 8."
    )
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
    assert in_words([1]) == "1"
    assert in_words([1, 2, 3], "or") == "1, 2 or 3"
    assert nearest("Makin", ["making", "make", "voting", "Making"]) == ["making", "make"]


def test_indices_out_of_range_say_the_range():
    assert checked_indices("heads", [2, 0], 3) == (2, 0)
    with pytest.raises(ValueError, match="heads 3 and -1 out of range: valid are 0 to 2"):
        checked_indices("heads", [3, -1, 0], 3)
    with pytest.raises(ValueError, match="valid are none"):
        checked_indices("heads", [0], 0)
