"""What is read of a header's masks without torch, against the masks themselves."""

import numpy as np
import pytest
import torch

from multihead import masks
from multihead.masks import Sizes
from multihead.recording.ranges import are_simple, span_of
from multihead.recording.schema import Fields
from multihead.recording.stored_masks import MaskWriter

SIMPLE = {
    "causal": masks.causal(),
    "window": masks.sliding_window(3),
    "both sides": masks.sliding_window(left=2, right=5),
    "one side": masks.sliding_window(left=4),
    "the other": masks.sliding_window(right=1),
    "everything": masks.SlidingWindow(None, None),
    "prefix": masks.prefix(4),
    "long prefix": masks.prefix(100),
    "both": masks.causal() & masks.sliding_window(left=3, right=3),
    "three": masks.causal() & (masks.prefix(5) & masks.sliding_window(left=6)),
    "nothing": masks.prefix(0) & masks.causal(),
}


def nodes_of(mask):
    """A mask as a header has it, and its place among the nodes."""
    writer = MaskWriter(lambda _: 0, lambda _: 0)
    place = writer.add(mask)
    return [Fields(node, f"masks[{number}]") for number, node in enumerate(writer.nodes)], place


@pytest.mark.parametrize("mask", SIMPLE.values(), ids=list(SIMPLE))
@pytest.mark.parametrize(("queries", "keys"), [(11, 11), (5, 13), (7, 3), (2, 0)])
def test_ranges_are_those_of_the_masks(mask, queries, keys):
    nodes, place = nodes_of(mask)
    sizes, chosen = Sizes(1, 1, queries, keys), np.arange(queries)[::2]
    assert are_simple(nodes)
    first, stop = span_of(nodes, place, chosen, sizes)
    seen = (np.arange(keys) >= first[:, None]) & (np.arange(keys) < stop[:, None])
    exact = mask.dense(queries, keys)[::2].expand(len(chosen), keys)
    assert torch.from_numpy(seen).equal(exact)


@pytest.mark.parametrize(
    "mask",
    [
        masks.padding(torch.ones(1, 3, dtype=torch.bool)),
        masks.documents(torch.zeros(3, dtype=torch.int64)),
        masks.dense(torch.ones(3, 3, dtype=torch.bool)),
        masks.causal() | masks.prefix(1),
        ~masks.causal(),
        masks.causal() & ~masks.prefix(1),
    ],
    ids=["padding", "documents", "dense", "or", "not", "within"],
)
def test_other_masks_are_not_read_so(mask):
    assert not are_simple(nodes_of(mask)[0])


def node(**fields):
    return Fields(fields, "masks[0]")


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "mask 0 is missing"),
        ([node(kind="and", left=0, right=0)], r"masks\[0\].left is out of range"),
        ([node(kind="prefix", length=-1)], r"masks\[0\].length is out of range"),
        ([node(kind="sliding_window", left=None)], r"masks\[0\] has no 'right'"),
    ],
)
def test_damaged_masks_are_refused(nodes, words):
    with pytest.raises(ValueError, match=words):
        span_of(nodes, 0, np.arange(3), Sizes(1, 1, 3, 3))


def test_masks_within_masks_are_followed_only_so_deep():
    nodes = [node(kind="causal"), *(node(kind="and", left=place, right=place) for place in range(60))]
    with pytest.raises(ValueError, match="nested deeper than 8"):
        span_of(nodes, 60, np.arange(3), Sizes(1, 1, 3, 3))
