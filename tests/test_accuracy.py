"""The bar must reject what is wrong: swapped heads, a shifted mask, a missing scale, one lost key, and NaN."""

from dataclasses import replace

import pytest
import torch

from multihead import masks
from multihead.core import reference
from tests.accuracy import check, plain, random_call


@pytest.fixture
def call():
    return random_call(mask=masks.sliding_window(3))


def test_accepts_the_plain_run(call):
    check(plain(call).output, reference(call).output, plain(call).output)


def test_rejects_swapped_heads(call):
    swapped = plain(call).output[:, [1, 0, *range(2, 6)]]
    with pytest.raises(AssertionError, match="error"):
        check(swapped, reference(call).output, plain(call).output)


def test_rejects_a_shifted_mask(call):
    shifted = plain(replace(call, mask=masks.sliding_window(2))).output
    with pytest.raises(AssertionError, match="error"):
        check(shifted, reference(call).output, plain(call).output)


def test_rejects_a_missing_scale(call):
    unscaled = plain(replace(call, scale=1.0)).output
    with pytest.raises(AssertionError, match="error"):
        check(unscaled, reference(call).output, plain(call).output)


def test_rejects_a_tiny_but_real_error(call):
    with pytest.raises(AssertionError, match="error"):
        check(plain(call).output + 1e-4, reference(call).output, plain(call).output)


def test_rejects_nan(call):
    found = plain(call).output.clone()
    found[0, 0, 0, 0] = torch.nan
    with pytest.raises(AssertionError, match="NaN"):
        check(found, reference(call).output, plain(call).output)


def test_rejects_lost_infinities():
    exact = torch.tensor([0.0, -torch.inf]).double()
    with pytest.raises(AssertionError, match="infinities differ"):
        check(torch.zeros(2), exact, exact.float())
    with pytest.raises(AssertionError, match="sign"):
        check(torch.tensor([0.0, torch.inf]), exact, exact.float())


def test_rejects_another_shape(call):
    with pytest.raises(AssertionError, match="shapes"):
        check(plain(call).output[:, :1], reference(call).output, plain(call).output)
