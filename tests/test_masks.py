"""Masks against their definitions, cell by cell."""

import pytest
import torch

from multihead import masks
from multihead.masks import Sizes
from tests.accuracy import mask_examples, random_bool

L, S = 7, 11


def cells(rule, queries=L, keys=S):
    """A mask from a rule about positions: ``rule(position, key)``."""
    return torch.tensor([[rule(i + keys - queries, j) for j in range(keys)] for i in range(queries)])


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (7, 11), (11, 7), (1, 5), (5, 1)])
def test_causal_is_bottom_right(queries, keys):
    assert torch.equal(masks.causal().dense(queries, keys), cells(lambda p, j: j <= p, queries, keys))
    assert masks.causal().dense(queries, keys)[-1].all()


@pytest.mark.parametrize("window", [1, 2, 5, 50])
def test_window_of_w_sees_exactly_w_keys(window):
    dense = masks.sliding_window(window).dense(L, S)
    assert torch.equal(dense, cells(lambda p, j: p - window < j <= p))
    assert dense[-1].sum() == min(window, S)


def test_sides_of_a_window():
    assert torch.equal(masks.sliding_window(left=2, right=3).dense(L, S), cells(lambda p, j: p - 2 <= j <= p + 3))
    assert torch.equal(masks.sliding_window(left=2).dense(L, S), cells(lambda p, j: p - 2 <= j))
    assert torch.equal(masks.sliding_window(right=0).dense(L, S), masks.causal().dense(L, S))


def test_padding_documents_prefix_dense():
    valid = random_bool(2, S)
    padded = masks.padding(valid).dense(L, S, batch=2)
    assert torch.equal(padded[:, 0], valid[:, None].expand(2, L, S))
    ids, keys = torch.arange(L) // 2, torch.arange(S) // 3
    assert torch.equal(masks.documents(ids, keys).dense(L, S), ids[:, None] == keys)
    assert torch.equal(masks.prefix(3).dense(L, S), torch.arange(S).lt(3).expand(L, S))
    given = random_bool(6, L, S)
    assert torch.equal(masks.dense(given).dense(L, S, heads=6)[0], given)


def test_operators_are_cellwise():
    a, b = masks.causal(), masks.sliding_window(left=1, right=3)
    da, db = a.dense(L, S), b.dense(L, S)
    assert torch.equal((a & b).dense(L, S), da & db)
    assert torch.equal((a | b).dense(L, S), da | db)
    assert torch.equal((~a).dense(L, S), ~da)
    assert ~~a is a
    with pytest.raises(TypeError, match="unsupported operand"):
        a & True


@pytest.mark.parametrize(
    "mask", [m for m in mask_examples().values() if m is not None], ids=[n for n in mask_examples() if n != "none"]
)
def test_chosen_queries_and_keys_are_a_cut_of_the_whole(mask):
    sizes = Sizes(2, 6, L, S)
    whole = mask.visible(torch.arange(L), torch.arange(S), sizes).expand(-1, -1, L, S)
    queries, keys = torch.tensor([5, 0, 3]), torch.tensor([10, 2])
    part = mask.visible(queries, keys, sizes)
    assert torch.equal(part.expand(part.shape[0], part.shape[1], 3, 2), whole[:, :, queries][..., keys])
    assert part.dtype == torch.bool


@pytest.mark.parametrize(
    "mask", [m for m in mask_examples().values() if m is not None], ids=[n for n in mask_examples() if n != "none"]
)
def test_outside_the_key_range_nothing_is_visible(mask):
    sizes = Sizes(2, 6, L, S)
    whole = mask.visible(torch.arange(L), torch.arange(S), sizes).expand(-1, -1, L, S)
    for first in range(L):
        for last in range(first, L):
            start, stop = mask.key_range(first, last, sizes)
            assert 0 <= start <= stop <= S
            rows = whole[:, :, first : last + 1]
            assert not rows[..., :start].any()
            assert not rows[..., stop:].any()


def test_key_ranges_are_tight_where_kernels_gain_from_it():
    sizes = Sizes(1, 1, 100, 100)
    assert masks.causal().key_range(10, 19, sizes) == (0, 20)
    assert masks.sliding_window(5).key_range(50, 59, sizes) == (46, 60)
    assert (masks.causal() & masks.sliding_window(left=7, right=7)).key_range(50, 59, sizes) == (43, 60)
    assert (masks.sliding_window(2) | masks.prefix(3)).key_range(50, 59, sizes) == (0, 60)
    assert masks.causal().key_range(0, 3, Sizes(1, 1, 11, 7)) == (0, 0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (masks.sliding_window, ValueError, "either window, or left and right"),
        (lambda: masks.sliding_window(3, left=1), ValueError, "either window, or left and right"),
        (lambda: masks.sliding_window(0), ValueError, "window=0 lets a query see nothing"),
        (lambda: masks.sliding_window(left=-1), ValueError, "left=-1 is negative"),
        (lambda: masks.prefix(-2), ValueError, "prefix length=-2 is negative"),
        (
            lambda: masks.padding(torch.ones(2, 5, dtype=torch.int64)),
            TypeError,
            r"valid has dtype torch.int64.*attention_mask.bool\(\)",
        ),
        (lambda: masks.padding(torch.ones(2, 5, 1, dtype=torch.bool)), ValueError, "valid has shape"),
        (
            lambda: masks.documents(torch.zeros(5)),
            TypeError,
            "document ids have dtype torch.float32, expected integers",
        ),
        (lambda: masks.documents(torch.zeros(1, 2, 3, dtype=torch.int64)), ValueError, "document ids have shape"),
        (lambda: masks.dense(torch.zeros(3, 3)), TypeError, "mask has dtype torch.float32.*add a float mask as bias"),
        (lambda: masks.dense(torch.ones(3, dtype=torch.bool)), ValueError, r"mask has shape \(3\), expected"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_refuses_with_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_masks_move_to_a_device():
    tree = ~(masks.padding(random_bool(2, S)) & masks.documents(torch.zeros(S, dtype=torch.int64))) | masks.dense(
        random_bool(L, S)
    )
    moved = tree.to(torch.device("meta"))
    assert moved.right.allowed.device.type == "meta"
    assert moved.left.mask.left.valid.device.type == moved.left.mask.right.keys.device.type == "meta"
