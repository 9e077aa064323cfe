"""A part of a mask is a cut of the whole."""

import pytest
import torch

from multihead.core import PartOfMask
from multihead.masks import Sizes
from tests.accuracy import mask_examples

SIZES = Sizes(2, 6, 7, 11)
EXAMPLES = {name: mask for name, mask in mask_examples().items() if mask is not None}


@pytest.mark.parametrize("mask", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("item", [None, 1])
@pytest.mark.parametrize("heads", [None, [5, 0, 2]])
@pytest.mark.parametrize("queries", [None, [6, 1]])
@pytest.mark.parametrize("keys", [None, [10, 3, 4]])
def test_it_is_a_cut_of_the_whole(mask, item, heads, queries, keys):
    whole = mask.visible(torch.arange(7), torch.arange(11), SIZES).expand(2, 6, 7, 11)
    chosen = [None if some is None else torch.tensor(some) for some in (heads, queries, keys)]
    part = PartOfMask(mask, SIZES, item, *chosen)
    lengths = [11 if keys is None else 3, 7 if queries is None else 2]
    small = Sizes(2 if item is None else 1, 6 if heads is None else 3, lengths[1], lengths[0])
    part.check(small)
    found = part.visible(torch.arange(small.queries), torch.arange(small.keys), small)
    expected = whole if item is None else whole[item : item + 1]
    for axis, some in enumerate(chosen, 1):
        expected = expected if some is None else expected.index_select(axis, some)
    assert torch.equal(found.expand(expected.shape), expected)
    start, stop = part.key_range(0, small.queries - 1, small)
    assert not expected[..., :start].any()
    assert not expected[..., stop:].any()


def test_it_moves_as_a_whole():
    chosen = (torch.tensor([5, 0]), torch.tensor([6, 1]), torch.tensor([10, 3]))
    moved = PartOfMask(EXAMPLES["padding"], SIZES, 1, *chosen).to(torch.device("meta"))
    assert (moved.sizes, moved.item) == (SIZES, 1)
    tensors = (moved.mask.valid, moved.heads, moved.queries, moved.keys)
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert PartOfMask(EXAMPLES["causal"], SIZES).to(torch.device("meta")).keys is None


@pytest.mark.parametrize("keys", [None, [10, 3, 4]])
def test_without_its_first_keys(keys):
    part = PartOfMask(EXAMPLES["tree"], SIZES, 1, None, None, None if keys is None else torch.tensor(keys))
    length = 11 if keys is None else 3
    expected = part.dense(7, length)[..., 2:]
    shorter = part.without_first(2)
    assert isinstance(shorter, PartOfMask)
    assert torch.equal(shorter.dense(7, length - 2), expected)
    assert 0 < expected.sum() < expected.numel()
