"""Dense masks said again as small ones, only where these say exactly the same."""

import pytest
import torch

from multihead import masks
from multihead.errors import UnsupportedAttentionError
from multihead.lens import masks_found
from multihead.lens.masks_found import MaskFinder, top_left_causal
from multihead.masks import And, Dense, Sizes, SlidingWindow

LENGTHS = torch.arange(11) < torch.tensor([[11], [7]])
SHIFTED = torch.arange(11) >= torch.tensor([[3], [0]])


def dense(mask, sizes):
    return mask.dense(sizes.queries, sizes.keys, batch=sizes.batch, heads=sizes.heads)


@pytest.fixture(params=[1 << 22, 23], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(masks_found, "BLOCK", request.param)


EQUAL = Sizes(2, 3, 11, 11)
CACHED = Sizes(2, 3, 7, 11)
LONGER = Sizes(2, 3, 13, 11)
COMPACT = {
    "causal": masks.causal(),
    "padding": masks.padding(LENGTHS),
    "left padding": masks.padding(SHIFTED),
    "causal and padding": masks.causal() & masks.padding(LENGTHS),
    "causal and left padding": masks.causal() & masks.padding(SHIFTED),
    "window": masks.sliding_window(3),
    "wide window": masks.sliding_window(left=2, right=1),
    "one-sided window": masks.sliding_window(right=2),
    "only before": ~masks.sliding_window(left=1),
    "only after": ~masks.sliding_window(right=1),
    "before, at a distance": masks.sliding_window(left=4) & ~masks.sliding_window(left=1),
    "after, at a distance": masks.sliding_window(right=4) & ~masks.sliding_window(right=1),
    "window and padding": masks.sliding_window(3) & masks.padding(SHIFTED),
}


@pytest.mark.parametrize("sizes", [EQUAL, CACHED, LONGER], ids=str)
@pytest.mark.parametrize("name", COMPACT)
@pytest.mark.parametrize("sense", ["allowed", "hidden", "added"])
def test_compact_masks_are_found(name, sizes, sense, blocks):
    wanted = COMPACT[name]
    allowed = dense(wanted, sizes)
    given = {"allowed": allowed, "hidden": ~allowed}.get(sense)
    if given is None:
        given = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
    if given.ndim == 4:
        given = given[:, :1]
    found = MaskFinder().find(given, sense, sizes)
    assert torch.equal(dense(found.mask, sizes).expand(2, 3, *allowed.shape[-2:]), allowed.expand(2, 3, -1, -1))
    assert not isinstance(found.mask, Dense)
    assert found.bias is None
    assert found.empty_row == (not bool(allowed.any(-1).all()))
    if "and" in name:
        assert isinstance(found.mask, And)
        assert found.mask.left == wanted.left
        assert torch.equal(found.mask.right.valid, wanted.right.valid)
    elif name in ("causal", "window", "wide window", "one-sided window"):
        assert found.mask == wanted


@pytest.mark.parametrize("shape", [(11,), (1, 1), (11, 11), (1, 1, 11), (2, 3, 11, 11)])
def test_all_visible_is_no_mask(shape, blocks):
    assert MaskFinder().find(torch.ones(shape, dtype=torch.bool), "allowed", EQUAL).mask is None


def test_one_element_changed_is_not_the_same_mask(blocks):
    """Each mask that is off by one element anywhere must come out exactly."""
    for wanted in (masks.causal(), masks.sliding_window(3), masks.causal() & masks.padding(LENGTHS)):
        whole = dense(wanted, EQUAL)
        for place in torch.randperm(whole.numel(), generator=torch.Generator().manual_seed(0))[:40]:
            changed = whole.clone().view(-1)
            changed[place] = ~changed[place]
            changed = changed.view(whole.shape)[:, :1] if whole.ndim == 4 else changed.view(whole.shape)
            found = MaskFinder().find(changed, "allowed", EQUAL).mask
            assert torch.equal(dense(found, EQUAL).expand(2, 3, 11, 11), changed.expand(2, 3, 11, 11))


@pytest.mark.parametrize("shape", [(11, 11), (2, 1, 11, 11), (2, 3, 11, 11), (1, 3, 1, 11), (2, 1, 11, 1), (3, 11, 11)])
def test_anything_else_stays_dense_and_is_a_copy(shape, blocks):
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    found = MaskFinder().find(allowed, "allowed", EQUAL).mask
    assert torch.equal(dense(found, EQUAL).expand(2, 3, 11, 11), allowed.expand(2, 3, 11, 11))
    if isinstance(found, Dense):
        assert found.allowed.data_ptr() != allowed.data_ptr()


def test_heads_that_say_the_same_are_one(blocks):
    mask = MaskFinder().find(dense(masks.causal(), EQUAL).repeat(2, 3, 1, 1), "allowed", EQUAL).mask
    assert mask == masks.causal()
    expanded = dense(masks.padding(LENGTHS), EQUAL)
    assert isinstance(MaskFinder().find(expanded, "allowed", EQUAL).mask, masks.Padding)


def test_numbers_are_a_bias(blocks):
    bias = torch.randn(3, 11, 11)
    found = MaskFinder().find(bias, "added", EQUAL)
    assert found.mask is None
    assert torch.equal(found.bias[0], bias)
    almost = torch.zeros(11, 11)
    almost[10, 10] = -1e9
    assert MaskFinder().find(almost, "added", EQUAL).bias is not None


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_row_of_lowest_numbers_is_uniform_and_not_empty(low, blocks):
    given = torch.zeros(11, 11)
    given[3] = low
    found = MaskFinder().find(given, "added", EQUAL)
    assert found.empty_row
    assert (found.bias is None) == (low == -torch.inf)


def test_the_same_tensor_is_read_once():
    finder = MaskFinder()
    mask = dense(masks.causal(), EQUAL)
    first = finder.find(mask, "allowed", EQUAL)
    assert finder.find(mask, "allowed", EQUAL) is first
    assert finder.find(mask[None, None], "allowed", EQUAL) is not None
    mask[0, 5] = True
    changed = finder.find(mask, "allowed", EQUAL)
    assert changed is not first
    assert torch.equal(dense(changed.mask, EQUAL), mask)


def test_top_left_causal():
    for sizes in (EQUAL, CACHED, LONGER, Sizes(1, 1, 1, 5), Sizes(1, 1, 5, 1)):
        wanted = torch.ones(sizes.queries, sizes.keys, dtype=torch.bool).tril()
        mask = top_left_causal(sizes)
        found = torch.ones_like(wanted) if mask is None else dense(mask, sizes)
        assert torch.equal(found, wanted)
    assert top_left_causal(EQUAL) == masks.causal()
    assert top_left_causal(LONGER) == SlidingWindow(None, 2)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.ones(7, 13, dtype=torch.bool), r"its mask of shape \(7, 13\) does not broadcast to \(2, 3, 11, 11\)"),
        (torch.ones(11, 11, dtype=torch.int64), "dtype torch.int64, neither boolean nor floating-point"),
    ],
)
def test_masks_that_do_not_fit(mask, reason):
    with pytest.raises(UnsupportedAttentionError, match=reason):
        MaskFinder().find(mask, "allowed", EQUAL)
