"""Masks inside compiled graphs."""

import pytest
import torch

from multihead import masks
from multihead.masks import Sizes
from tests.accuracy import random_bool


@pytest.mark.parametrize("dynamic", [False, True])
def test_masks_are_made_inside_a_graph(dynamic):
    def shorter(x, valid):
        # torch's compiler does not know ~ of an object
        length = x.shape[0]
        mask = masks.sliding_window(length // 2) & masks.padding(valid) & masks.Not(masks.documents((x > 0).long()))
        mask = (masks.causal() & mask | masks.prefix(3)).without_first(2)
        return mask.visible(torch.arange(length), torch.arange(length - 2), Sizes(1, 1, length, length - 2))

    torch.compiler.reset()
    compiled = torch.compile(shorter, backend="eager", fullgraph=True, dynamic=dynamic)
    for length in (7, 11, 13):
        x, valid = torch.randn(length), random_bool(1, length)
        assert torch.equal(compiled(x, valid), shorter(x, valid))
