"""Masks against their definitions, cell by cell."""

import operator

import numpy as np
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
    assert a.__and__(True) is a.__or__("mask") is NotImplemented


@pytest.mark.parametrize("other", [torch.ones(L, S, dtype=torch.bool), np.ones((L, S), dtype=bool)])
@pytest.mark.parametrize("combine", [operator.and_, operator.or_])
@pytest.mark.usefixtures("as_users_run")
def test_a_tensor_is_no_operand(combine, other):
    for pair in ((masks.causal(), other), (other, masks.causal())):
        with pytest.raises(TypeError, match=r"say masks\.dense\(tensor\) for .*or masks\.padding\(tensor\)"):
            combine(*pair)


def test_a_mask_has_no_truth():
    a, b = masks.causal(), masks.prefix(2)
    for misunderstood in (lambda: a and b, lambda: a or b, lambda: not a, lambda: 1 if a else 2):
        with pytest.raises(
            TypeError, match=r"neither true nor false: combine masks with & \| ~ instead of and, or, not"
        ):
            misunderstood()


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
    packed = masks.documents(torch.arange(100) // 20)
    assert packed.key_range(10, 19, sizes) == (0, 20)
    assert packed.key_range(19, 20, sizes) == (0, 40)
    assert (masks.causal() & packed).key_range(50, 59, sizes) == (40, 60)
    two = masks.documents(torch.stack([torch.arange(100) // 20, 7 - torch.arange(100) // 25]))
    assert two.key_range(60, 69, Sizes(2, 1, 100, 100)) == (50, 80)


def test_documents_that_change_change_their_key_range():
    """A mask holds what it was given; its owner may fill a buffer again."""
    ids, keys = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 1, 2, 2, 2])
    sizes = Sizes(1, 1, 5, 7)
    mask = masks.documents(ids, keys)
    assert mask.key_range(0, 1, sizes) == (0, 2)
    keys[1] = 1
    assert mask.key_range(0, 1, sizes) == (0, 1)
    ids[0] = 2
    assert mask.key_range(0, 1, sizes) == (0, 7)
    ids[:] = 9
    assert mask.key_range(0, 4, sizes) == (0, 0)


def test_documents_of_nothing():
    nobody = torch.zeros(1, 0, dtype=torch.int64)
    assert masks.documents(torch.zeros(1, 5, dtype=torch.int64), nobody).key_range(0, 4, Sizes(1, 1, 5, 0)) == (0, 0)
    assert masks.documents(torch.zeros(0, 5, dtype=torch.int64)).key_range(0, 4, Sizes(0, 1, 5, 5)) == (0, 0)


def test_a_graph_does_not_depend_on_documents():
    mask, sizes = masks.documents(torch.arange(L) // 3), Sizes(1, 1, L, L)

    def from_range(x):
        start, stop = mask.key_range(0, 1, sizes)
        return x[start:stop]

    x = torch.arange(L)
    assert len(from_range(x)) == 3
    assert len(torch.compile(from_range, backend="eager", fullgraph=True)(x)) == L


def test_without_first_keeps_what_it_can():
    causal, window = masks.causal(), masks.sliding_window(3)
    assert causal.without_first(5) is causal
    assert window.without_first(5) is window
    assert masks.prefix(7).without_first(5) == masks.Prefix(2)
    assert masks.prefix(3).without_first(5) == masks.Prefix(0)
    padding = masks.padding(random_bool(2, S))
    assert padding.without_first(0) is padding
    shorter = padding.without_first(4).valid
    assert shorter.data_ptr() == padding.valid.data_ptr() + 4
    one_for_all = masks.dense(random_bool(L, 1))
    assert one_for_all.without_first(4) is one_for_all


def test_without_first_of_a_kind_defined_elsewhere():
    class Odd(masks.Mask):
        held = torch.zeros(1)

        def visible(self, queries, keys, sizes):
            return ((queries[:, None] + keys) % 2 == 1)[None, None]

        def check(self, sizes):
            if sizes.keys != S:
                raise ValueError(f"{sizes.keys} keys")

        def tensors(self):
            yield self.held

        def to(self, device):
            moved = Odd()
            moved.held = self.held.to(device)
            return moved

    whole = Odd().dense(L, S)
    shorter = Odd().without_first(2).without_first(3)
    assert torch.equal(shorter.dense(L, S - 5), whole[:, 5:])
    assert 0 < whole[:, 5:].sum() < whole[:, 5:].numel()
    with pytest.raises(ValueError, match="12 keys"):
        shorter.dense(L, S - 4)
    assert [tensor.device.type for tensor in shorter.to(torch.device("meta")).tensors()] == ["meta"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (masks.sliding_window, ValueError, "either window, or left and right"),
        (lambda: masks.sliding_window(3, left=1), ValueError, "either window, or left and right"),
        (lambda: masks.sliding_window(0), ValueError, "window=0 lets a query see nothing"),
        (lambda: masks.sliding_window(2.5), TypeError, r"window=2\.5 is no whole number"),
        (lambda: masks.sliding_window(True), TypeError, "window=True is no whole number"),
        (lambda: masks.sliding_window(left=-1), ValueError, "left=-1 is negative"),
        (lambda: masks.sliding_window(left=1, right=0.5), TypeError, r"right=0\.5 is no whole number"),
        (lambda: masks.sliding_window(left=True), TypeError, "left=True is no whole number"),
        (lambda: masks.prefix(-2), ValueError, "prefix length=-2 is negative"),
        (lambda: masks.prefix(1.5), TypeError, r"length=1\.5 is no whole number"),
        (lambda: masks.prefix(True), TypeError, "length=True is no whole number"),
        (lambda: masks.causal().without_first(-1), ValueError, "dropped=-1 is negative"),
        (lambda: masks.causal().without_first(1.5), TypeError, r"dropped=1\.5 is no whole number"),
        (
            lambda: masks.padding([[True]]),
            TypeError,
            r"valid is a list, expected a tensor: pass torch\.tensor\(valid\)",
        ),
        (lambda: masks.padding(np.ones((2, 5), dtype=bool)), TypeError, r"valid is .* ndarray, expected a tensor"),
        (
            lambda: masks.padding(torch.ones(2, 5, dtype=torch.int64)),
            TypeError,
            r"valid has dtype torch.int64.*attention_mask.bool\(\)",
        ),
        (lambda: masks.padding(torch.ones(2, 5, 1, dtype=torch.bool)), ValueError, "valid has shape"),
        (lambda: masks.documents([0, 0, 1]), TypeError, r"ids is a list, expected a tensor: pass torch\.tensor\(ids\)"),
        (
            lambda: masks.documents(torch.zeros(5, dtype=torch.int64), np.zeros(5, dtype=int)),
            TypeError,
            r"keys is .* ndarray, expected a tensor: pass torch\.tensor\(keys\)",
        ),
        (
            lambda: masks.documents(torch.zeros(5)),
            TypeError,
            "document ids have dtype torch.float32, expected integers",
        ),
        (lambda: masks.documents(torch.zeros(1, 2, 3, dtype=torch.int64)), ValueError, "document ids have shape"),
        (lambda: masks.dense([[True]]), TypeError, r"mask is a list, expected a tensor: pass torch\.tensor\(mask\)"),
        (lambda: masks.dense(np.ones((3, 3), dtype=bool)), TypeError, "mask is .* ndarray, expected a tensor"),
        (lambda: masks.dense(torch.zeros(3, 3)), TypeError, "mask has dtype torch.float32.*add a float mask as bias"),
        (lambda: masks.dense(torch.ones(3, dtype=torch.bool)), ValueError, r"mask has shape \(3\), expected"),
    ],
)
@pytest.mark.usefixtures("as_users_run")
def test_refuses_with_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (2, 7, 11),
            r"mask of shape \(2, 7, 11\) does .*\(2, 6, 7, 11\)\. .*if its first is the batch, pass mask\[:, None\]",
        ),
        ((2, 1, 11), r"mask of shape \(2, 1, 11\) .*pass mask\[:, None\]"),
        ((2, 11), r"mask of shape \(2, 11\) .*if it says which keys are real tokens, pass masks\.padding\(mask\)"),
        ((11, 7), r"mask of shape \(11, 7\) .*is it transposed\?"),
        ((6, 11, 7), r"mask of shape \(6, 11, 7\) .*is it transposed\?"),
        ((2, 6, 7, 5), r"mask of shape \(2, 6, 7, 5\) does not broadcast to .*\(2, 6, 7, 11\)\.$"),
        ((1, 1, 7, 5), r"mask of shape \(1, 1, 7, 5\) does not"),
        ((5, 11), r"mask of shape \(5, 11\) does .*\(2, 6, 7, 11\)\.$"),
        ((3, 7, 11), r"mask of shape \(3, 7, 11\) does .*\(2, 6, 7, 11\)\.$"),
    ],
)
def test_a_dense_mask_that_does_not_fit(shape, message):
    mask = masks.dense(torch.ones(shape, dtype=torch.bool))
    for same in (mask, mask.to(torch.device("cpu"))):
        with pytest.raises(ValueError, match=message):
            same.check(Sizes(2, 6, L, S))


def test_what_is_advised_fits():
    sizes = Sizes(2, 6, L, S)
    masks.dense(random_bool(2, L, S)[:, None]).check(sizes)
    masks.padding(random_bool(2, S)).check(sizes)


@pytest.mark.usefixtures("as_users_run")
def test_numbers_of_numpy_are_numbers():
    assert masks.sliding_window(np.int64(3)) == masks.sliding_window(3)
    assert masks.prefix(torch.tensor(2)) == masks.prefix(2)
    assert masks.sliding_window(left=np.int64(1)) == masks.sliding_window(left=1)


def test_masks_move_to_a_device():
    tree = ~(masks.padding(random_bool(2, S)) & masks.documents(torch.zeros(S, dtype=torch.int64))) | masks.dense(
        random_bool(L, S)
    )
    moved = tree.to(torch.device("meta"))
    assert moved.right.allowed.device.type == "meta"
    assert moved.left.mask.left.valid.device.type == moved.left.mask.right.keys.device.type == "meta"


@pytest.mark.parametrize(
    ("mask", "simple"),
    [
        (masks.causal(), True),
        (masks.sliding_window(3) & masks.padding(torch.arange(S)[None] > 2), True),
        (masks.padding(torch.arange(S)[None] < 5) | masks.causal(), True),
        (masks.causal() | masks.prefix(3), True),
        (masks.documents(torch.arange(L) // 3, torch.arange(S) // 4), True),
        (masks.padding(torch.arange(S)[None] % 2 == 0), False),
        (masks.documents(torch.arange(L) % 3, torch.arange(S) % 3), False),
        (masks.prefix(1) | masks.sliding_window(1), False),
        (~masks.causal(), False),
        (masks.dense(torch.ones(L, S, dtype=torch.bool)), False),
    ],
)
def test_where_a_mask_is_one_range_a_query_it_says_so(mask, simple):
    assert (mask.spans(torch.arange(L), Sizes(1, 1, L, S)) is not None) == simple
