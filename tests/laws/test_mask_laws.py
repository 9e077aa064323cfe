"""What must hold for every mask, however it is put together: property tests."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from multihead import masks
from multihead.core import PartOfMask
from multihead.masks import Mask, Sizes

LENGTHS = st.integers(1, 13)
BATCH, HEADS = 2, 3


class Diagonals(Mask):
    """A mask of a kind that this package does not know, with key ranges of its own."""

    def visible(self, queries, keys, sizes):
        batch = torch.arange(sizes.batch)[:, None, None, None]
        return (keys >= 2) & (keys < sizes.keys - 1) & ((queries[:, None] + keys + batch) % 3 != 0)

    def key_range(self, first, last, sizes):
        return min(2, max(sizes.keys - 1, 0)), max(sizes.keys - 1, 0)

    def check(self, sizes):
        assert sizes.keys > 0


@st.composite
def random_bools(draw, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.rand(*shape, generator=generator) < draw(st.sampled_from([0.2, 0.6, 1.1]))


@st.composite
def document_numbers(draw, length: int) -> torch.Tensor:
    """One row for the batch or one for each sequence; documents in one run or in several."""
    numbers = st.lists(st.integers(-3, 3), min_size=length, max_size=length)
    rows = [draw(numbers | numbers.map(sorted)) for _ in range(draw(st.sampled_from([1, BATCH])))]
    return torch.tensor(rows, dtype=draw(st.sampled_from([torch.int64, torch.int8])))


@st.composite
def leaves(draw, queries: int, keys: int) -> Mask:
    kind = draw(st.sampled_from(["causal", "window", "prefix", "padding", "documents", "dense", "unknown", "part"]))
    widths = st.none() | st.integers(0, 5)
    match kind:
        case "causal":
            return masks.causal()
        case "window":
            return masks.SlidingWindow(draw(widths), draw(widths))
        case "prefix":
            return masks.prefix(draw(st.integers(0, 15)))
        case "padding":
            return masks.padding(draw(random_bools(draw(st.sampled_from([1, BATCH])), keys)))
        case "documents":
            return masks.documents(draw(document_numbers(queries)), draw(document_numbers(keys)))
        case "dense":
            shape = [draw(st.sampled_from([1, size])) for size in (BATCH, HEADS, queries, keys)]
            return masks.dense(draw(random_bools(*shape)))
        case "unknown":
            return Diagonals()
    # a part of a larger attention: some of its queries and keys, in any order
    inner = masks.dense(draw(random_bools(BATCH, 1, queries + 2, keys + 1))) & masks.causal()
    chosen = torch.tensor(draw(st.permutations(range(keys + 1)))[:keys])
    places = torch.tensor(draw(st.permutations(range(queries + 2)))[:queries])
    return PartOfMask(inner, Sizes(BATCH, HEADS, queries + 2, keys + 1), queries=places, keys=chosen)


@st.composite
def mask_trees(draw, queries: int, keys: int) -> Mask:
    def combined(part):
        return st.builds(masks.And, part, part) | st.builds(masks.Or, part, part) | st.builds(masks.Not, part)

    return draw(st.recursive(leaves(queries, keys), combined, max_leaves=4))


def full(mask: Mask, queries: int, keys: int) -> torch.Tensor:
    return mask.dense(queries, keys, batch=BATCH, heads=HEADS).expand(BATCH, HEADS, queries, keys)


@given(st.data(), LENGTHS, LENGTHS)
def test_without_first_keys_the_others_are_seen_as_before(data, queries, keys):
    mask = data.draw(mask_trees(queries, keys))
    dropped = data.draw(st.integers(0, keys))
    shorter = mask.without_first(dropped)
    expected = full(mask, queries, keys)[..., dropped:]
    assert torch.equal(full(shorter, queries, keys - dropped), expected)
    sizes = Sizes(BATCH, HEADS, queries, keys - dropped)
    for first in range(queries):
        for last in range(first, queries):
            start, stop = shorter.key_range(first, last, sizes)
            assert 0 <= start <= stop <= sizes.keys
            rows = expected[:, :, first : last + 1]
            assert not rows[..., :start].any()
            assert not rows[..., stop:].any()


@given(st.data(), LENGTHS, LENGTHS)
def test_forgetting_twice_is_forgetting_once(data, queries, keys):
    mask = data.draw(mask_trees(queries, keys))
    once = data.draw(st.integers(0, keys))
    twice = data.draw(st.integers(0, keys - once))
    left = keys - once - twice
    expected = full(mask.without_first(once + twice), queries, left)
    assert torch.equal(full(mask.without_first(once).without_first(twice), queries, left), expected)


@given(st.data(), LENGTHS, LENGTHS)
def test_the_key_range_of_documents_is_the_smallest_there_is(data, queries, keys):
    mask = masks.documents(data.draw(document_numbers(queries)), data.draw(document_numbers(keys)))
    first = data.draw(st.integers(0, queries - 1))
    last = data.draw(st.integers(first, queries - 1))
    seen = full(mask, queries, keys)[:, :, first : last + 1].flatten(0, 2).any(0).nonzero().flatten().tolist()
    found = mask.key_range(first, last, Sizes(BATCH, HEADS, queries, keys))
    assert found == ((seen[0], seen[-1] + 1) if seen else (0, 0))


@given(st.data(), LENGTHS, LENGTHS)
def test_spans_say_all_or_nothing(data, queries, keys):
    mask = data.draw(mask_trees(queries, keys))
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, queries - 1), min_size=1, max_size=queries)))
    sizes = Sizes(BATCH, HEADS, queries, keys)
    spans = mask.spans(chosen, sizes)
    if spans is None:
        return
    first, stop = (end.expand(BATCH, HEADS, len(chosen))[..., None] for end in spans)
    places = torch.arange(keys)
    assert (first <= stop).all()
    assert torch.equal((places >= first) & (places < stop), full(mask, queries, keys)[:, :, chosen])
