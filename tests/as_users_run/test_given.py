"""Weights that are none: what is said where nothing checks types first."""

import re

import numpy as np
import pytest
import torch

from multihead import Recording

TOKENS = ["they", "act", "now"]
WEIGHTS = torch.full((2, 3, 3), 1 / 3)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (None, "weights is None, so nobody has any: .*output_attentions=True; multihead.observe"),
        (WEIGHTS, r"one tensor of shape \(2, 3, 3\), expected a list .*: \[weights\] for the weights of one layer"),
        (WEIGHTS.numpy(), r"one tensor of shape \(2, 3, 3\), expected a list"),
        ({"0": WEIGHTS}, "weights is a dict, expected a list with a tensor for each layer"),
        (3, "weights is an int, expected a list with a tensor for each layer"),
        ("weights", "weights is a str, expected a list"),
        ([WEIGHTS.tolist()], r"weights\[0\] is a list, expected a tensor or array .*give one step.*attentions\[0\]"),
        ([WEIGHTS, (WEIGHTS,)], r"weights\[1\] is a tuple, expected .*give one step, such as attentions\[1\]\."),
        ([0.5], r"weights\[0\] is a float, expected a tensor or array of \(batch, heads, queries, keys\)\."),
        ([WEIGHTS.round().long()], r"weights\[0\] has dtype torch.int64, expected a floating-point type"),
        ([WEIGHTS > 0], r"weights\[0\] has dtype torch.bool, expected a floating-point type"),
        ([WEIGHTS * 1j], r"weights\[0\] has dtype torch.complex64, expected a floating-point type"),
        ([np.ones((2, 3, 3), int)], r"weights\[0\] has dtype int64, expected a floating-point type"),
        ([np.full((2, 3, 3), "x")], r"weights\[0\] has dtype <U1, expected a floating-point type"),
        ([WEIGHTS.to_sparse()], r"weights\[0\] is no dense tensor .*to_dense\(\)"),
        ([WEIGHTS.to("meta")], r"weights\[0\] is no dense tensor"),
    ],
)
def test_weights_of_another_kind(weights, words):
    with pytest.raises(TypeError, match=words) as caught:
        Recording.from_weights(weights, TOKENS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ("they act now", "tokens is one string: give a list of tokens"),
        ([4, 7, 9], "tokens holds 4, a int: give a list of strings"),
        (None, "tokens is None: give the text's tokens"),
        ([TOKENS, None], "tokens holds None, a NoneType"),
    ],
)
def test_tokens_of_another_kind(tokens, words):
    with pytest.raises(TypeError, match=words):
        Recording.from_weights([WEIGHTS], tokens)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, r"heads=3 is no list of numbers: say heads=\[3\]"),
        ({"layers": [0.5]}, "layers contains 0.5, which is no whole number"),
        ({"key_tokens": "words"}, "key_tokens is one string"),
    ],
)
def test_options_of_another_kind(options, words):
    with pytest.raises(TypeError, match=words):
        Recording.from_weights([WEIGHTS], TOKENS, **options)


def test_lists_of_any_kind():
    for weights in ((one for one in (WEIGHTS,)), (WEIGHTS,), [WEIGHTS.numpy()]):
        recording = Recording.from_weights(weights, tuple(TOKENS), heads=torch.tensor([5, 2]), layers=np.array([4]))
        assert re.fullmatch(r"Recording of .*: 1 layer × 2 of 6 heads, 3 tokens", repr(recording))
        assert torch.equal(recording.rows(4, [1], heads=[5]), WEIGHTS[None, 0, [1]])
