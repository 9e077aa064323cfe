"""Rows, columns and tiles recomputed from q, k and the log-sum-exp are the formula's weights."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multihead import masks
from multihead.core import AttentionCall, Statistics, reference
from multihead.errors import RecordingError
from multihead.masks import Mask, Sizes
from multihead.recording import Layer, query
from multihead.recording.query import Link, numbers, weights
from tests.accuracy import OPTIONS, SIZES, check, mask_examples, plain, random_call
from tests.recording.examples import recording_of, selected

EVERY_QUERY, EVERY_KEY = range(SIZES["queries"]), range(SIZES["keys"])


class Diagonals(Mask):
    """A mask of a kind this package does not know, that differs between sequences and heads."""

    def visible(self, queries, keys, sizes):
        batch, heads = torch.arange(sizes.batch)[:, None, None, None], torch.arange(sizes.heads)[None, :, None, None]
        return (queries[:, None] + keys + batch + heads) % 3 != 0


MASKS = mask_examples() | {
    "unknown": Diagonals(),
    "unknown inside": masks.causal() | ~(Diagonals() & masks.padding(torch.rand(2, 11) > 0.4)),
    "documents of each sequence": masks.documents(torch.arange(14).view(2, 7) // 4, torch.arange(22).view(2, 11) // 5),
    "dense, one row for all": masks.dense(torch.rand(2, 1, 1, 11) > 0.4),
}


def agree(layer: Layer, call: AttentionCall, item: int) -> None:
    """Every way to ask gives the reference's weights."""
    exact, simple = reference(call).weights[item], plain(call).weights[item]
    heads, queries = list(layer.heads), list(EVERY_QUERY if layer.queries is None else layer.queries)
    exact, simple = exact[heads], simple[heads]
    recording = recording_of(layer) if layer.sizes.queries == layer.sizes.keys else recording_without_text(layer)
    check(recording.rows(0, queries, item=item), exact[:, queries], simple[:, queries], "rows")
    keys = [7, 2]
    check(recording.columns(0, keys, item=item), exact[:, queries][..., keys], simple[:, queries][..., keys], "columns")
    tile = recording.tile(0, slice(None), slice(3, 8), item=item)
    check(tile, exact[:, queries, 3:8], simple[:, queries, 3:8], "tile")


def recording_without_text(*layers: Layer):
    from multihead.recording import Recording

    return Recording(layers, {})


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_weights_are_the_formula(mask, options):
    call = random_call(mask=MASKS[mask], **OPTIONS[options])
    agree(selected(call), call, item=1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", ["plain", "all"])
def test_some_heads_and_queries(mask, options):
    call = random_call(mask=MASKS[mask], **OPTIONS[options])
    agree(selected(call, heads=[5, 0, 3], queries=[6, 0, 4]), call, item=1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 11), (2, 1, 7, 1), (2, 6, 7, 11), (1, 6, 1, 11)])
def test_a_bias_of_any_broadcast_shape(shape):
    call = random_call(bias=torch.randn(shape))
    agree(selected(call, heads=[4, 1], queries=[5, 2]), call, item=1)
    agree(selected(call), call, item=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    call = random_call(dtype, mask=masks.causal())
    found = weights(selected(call), None, None, item=1)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    check(found, reference(call).weights[1], reference(call, found.dtype).weights[1])


@pytest.mark.parametrize("tile", [1, 13, 40])
@pytest.mark.parametrize("mask", ["tree", "dense per head"])
def test_any_tile_size_gives_the_same(monkeypatch, tile, mask):
    call = random_call(mask=MASKS[mask], **OPTIONS["all"])
    whole = weights(selected(call), None, None, item=1)
    monkeypatch.setattr(query, "TILE_SCORES", tile)
    torch.testing.assert_close(weights(selected(call), None, None, item=1), whole, atol=1e-6, rtol=1e-5)
    agree(selected(call, queries=[6, 1, 3]), call, item=0)


def test_chosen_heads_come_in_the_order_asked_for():
    call = random_call()
    layer = selected(call, heads=[1, 4, 5])
    found = weights(layer, [2], [3, 1], heads=[5, 1])
    exact, simple = (run.weights[0][[5, 1]][:, [2]][..., [3, 1]] for run in (reference(call), plain(call)))
    check(found, exact, simple)


def test_a_query_that_sees_nothing_gives_zeros():
    call = random_call(mask=masks.prefix(0), softcap=3.0)
    assert not weights(selected(call), None, None).any()


def test_nan_that_nobody_sees_does_not_leak():
    call = random_call(mask=masks.prefix(5))
    call.k[:, :, 5:] = torch.nan
    layer = selected(call)
    clean = random_call(mask=masks.prefix(5))
    check(weights(layer, None, None), reference(clean).weights[0], plain(clean).weights[0])


def test_rows_sum_to_one_less_the_sink():
    call = random_call(sinks=True)
    layer = selected(call, statistics=Statistics(sink=True))
    torch.testing.assert_close(weights(layer, None, None, item=1).sum(-1) + layer.statistics.sink[1], torch.ones(6, 7))


def test_nothing_asked_gives_nothing():
    layer = selected(random_call())
    assert weights(layer, [], None).shape == (6, 0, 11)
    assert weights(layer, None, []).shape == (6, 7, 0)
    assert weights(layer, None, range(5, 5), heads=[]).shape == (0, 7, 0)


class TestTheComparisonRejects:
    """A wrong layer must not pass for the right one."""

    @pytest.fixture
    def call(self):
        return random_call(mask=masks.sliding_window(3), scale=0.5)

    def wrong(self, call, **changes):
        with pytest.raises(AssertionError, match="error"):
            agree(selected(call, **changes), call, item=0)

    def test_swapped_heads(self, call):
        self.wrong(call, q=call.q[:, [1, 0, 2, 3, 4, 5]])

    def test_swapped_key_heads(self, call):
        self.wrong(call, kv_heads=(0, 0, 1, 1, 2, 2))

    def test_a_shifted_mask(self, call):
        self.wrong(call, mask=masks.sliding_window(2))

    def test_a_missing_scale(self, call):
        self.wrong(call, scale=1.0)

    def test_a_missing_softcap(self):
        self.wrong(random_call(softcap=1.5), softcap=None)

    def test_another_sequence(self, call):
        self.wrong(call, q=call.q.flip(0))


class Largest(TorchDispatchMode):
    """Remembers how many entries the largest tensor had that any operation made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        # views and results in place are no new memory
        if not any(result.alias_info for result in function._schema.returns):
            tensors = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, torch.Tensor)]
            self.entries = max([self.entries, *(tensor.numel() for tensor in tensors)])
        return answer


@pytest.mark.parametrize("asked", ["rows", "columns", "tile"])
def test_memory_is_the_answer_and_a_tile(monkeypatch, asked):
    monkeypatch.setattr(query, "TILE_SCORES", 1 << 14)
    length = 2053
    call = random_call(heads=2, kv_heads=1, queries=length, keys=length)
    mask = masks.causal() & masks.padding(torch.rand(2, length) > 0.2) | masks.sliding_window(5)
    layer = selected(call, mask=mask)
    recording = recording_of(layer, tokens=["x"] * length)
    with Largest() as largest:
        if asked == "rows":
            recording.rows(0, [3, 2000], item=1)
        elif asked == "columns":
            recording.columns(0, [5, 1500], item=1)
        else:
            recording.tile(0, range(700, 740), slice(10, 1000), heads=[1])
    answer = {"rows": 4, "columns": 4}.get(asked, 20) * length
    assert length <= largest.entries <= max(answer, 1 << 14) < length**2


def test_a_dense_mask_is_never_copied_whole(monkeypatch):
    monkeypatch.setattr(query, "TILE_SCORES", 1 << 14)
    length = 509
    call = random_call(heads=2, kv_heads=1, queries=length, keys=length)
    layer = selected(call, mask=masks.dense(torch.rand(2, 2, length, length) > 0.3))
    with Largest() as largest:
        weights(layer, None, [5], item=1)
    assert largest.entries <= 1 << 14


class TestWhatWasNotRecorded:
    def test_queries_and_keys(self):
        layer = selected(random_call(), q=None, k=None)
        with pytest.raises(RecordingError, match=r"layer 0 holds no queries and keys .* observe with qk=True"):
            weights(layer, [0], None)

    def test_log_sum_exp(self):
        layer = selected(random_call(), statistics=Statistics(lse=False))
        with pytest.raises(RecordingError, match=r"no log-sum-exp .* observe with Statistics\(lse=True\)"):
            weights(layer, [0], None)

    def test_a_query(self):
        layer = selected(random_call(), queries=[0, 1, 2, 5])
        with pytest.raises(
            RecordingError, match=r"query 3 of layer 0 was not recorded: its queries are 0 to 2 and 5\."
        ):
            weights(layer, [3], None)
        with pytest.raises(RecordingError, match=r"query 7 of layer 0 was not recorded: its queries are 0 to 6\."):
            weights(selected(random_call()), range(5, 8), None)

    def test_a_head(self):
        layer = selected(random_call(), heads=[1, 3])
        with pytest.raises(RecordingError, match=r"head 0 and 2 of layer 0 was not recorded: its heads are 1 and 3\."):
            weights(layer, [0], None, heads=[0, 2, 3])

    @pytest.mark.parametrize("key", [-1, 11])
    def test_a_key(self, key):
        with pytest.raises(RecordingError, match=rf"key {key} of layer 0 was not recorded: its keys are 0 to 10\."):
            weights(selected(random_call()), None, [key])

    def test_a_sequence(self):
        with pytest.raises(RecordingError, match=r"there is no sequence 2: recorded are 0 and 1\."):
            weights(selected(random_call()), None, None, item=2)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ([], "none"),
        (range(0), "none"),
        ([4], "4"),
        (range(1), "0"),
        (range(2), "0 and 1"),
        ([7, 8, 3], "3, 7 and 8"),
        (range(100_000), "0 to 99999"),
        (range(0, 100, 2), "0, 2, 4, 6, 8, 10, ... and 98"),
        ([0, 1, 2, 9], "0 to 2 and 9"),
    ],
)
def test_numbers_in_words(kept, words):
    assert numbers(kept) == words


def test_a_link_prints_no_control_characters():
    link = Link(0, 1, 2, 3, "a\x1b[2J", "\ud800", 0.5)
    assert str(link) == "layer 0 head 1: a\\x1b[2J (2) → \\ud800 (3)  0.500"


def test_sizes_are_those_of_the_model():
    call = random_call(mask=masks.causal())
    layer = selected(call, queries=[6])
    assert layer.sizes == Sizes(2, 6, 7, 11)
    assert weights(layer, [6], None).count_nonzero() == 6 * 11
