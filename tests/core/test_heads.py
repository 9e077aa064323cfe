"""Heads are contiguous slices of the features."""

import pytest
import torch

from multihead.core import merge_heads, split_heads


def test_head_h_is_its_slice_and_merging_undoes_splitting():
    x = torch.randn(2, 7, 15)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 7, 5)
    assert torch.equal(heads[:, 1], x[..., 5:10])
    assert torch.equal(merge_heads(heads), x)


def test_splitting_copies_nothing():
    x = torch.randn(2, 7, 15)
    assert split_heads(x, 3).data_ptr() == x.data_ptr()


def test_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="15 features do not split into num_heads=4: try 1, 3, 5 or 15 heads"):
        split_heads(torch.zeros(2, 7, 15), 4)
