"""What must hold for every attention, whatever its sizes: property tests."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from multihead import masks
from multihead.core import AttentionCall, SoftmaxState, Statistics, reference
from multihead.kernels import chunked, measure, tiles
from tests.accuracy import mask_examples, random_call

SEEDS = st.integers(0, 2**31)
LENGTHS = st.integers(1, 13)


@st.composite
def mask_trees(draw, queries: int, keys: int, depth: int = 2) -> masks.Mask:
    if depth and draw(st.booleans()):
        kind = draw(st.sampled_from(["and", "or", "not"]))
        left = draw(mask_trees(queries, keys, depth - 1))
        if kind == "not":
            return ~left
        right = draw(mask_trees(queries, keys, depth - 1))
        return left & right if kind == "and" else left | right
    examples = mask_examples(queries, keys, batch=2, heads=6)
    return examples[draw(st.sampled_from([name for name in examples if name not in ("none", "tree")]))]


@st.composite
def calls(draw, dtype=torch.float64):
    queries, keys = draw(LENGTHS), draw(LENGTHS)
    options = {
        "mask": draw(st.none() | mask_trees(queries, keys)),
        "softcap": draw(st.none() | st.floats(0.5, 5.0)),
        "bias": draw(st.sampled_from([None, True])),
        "sinks": draw(st.sampled_from([None, True])),
    }
    sizes = {"queries": queries, "keys": keys, "kv_heads": draw(st.sampled_from([1, 2, 3, 6]))}
    return random_call(dtype, seed=draw(SEEDS), **sizes, **options)


@given(calls(), st.permutations(range(6)))
def test_permuting_heads_permutes_the_output(call, order):
    spread = AttentionCall(
        call.q,
        call.k.repeat_interleave(call.group, 1),
        call.v.repeat_interleave(call.group, 1),
        bias=call.bias,
        sinks=call.sinks,
    )
    moved = AttentionCall(
        spread.q[:, order],
        spread.k[:, order],
        spread.v[:, order],
        bias=None if call.bias is None else call.bias[:, order],
        sinks=None if call.sinks is None else call.sinks[order],
    )
    torch.testing.assert_close(chunked.attend(moved), chunked.attend(spread)[:, order])


@given(calls(), st.floats(-30, 30))
def test_shifting_every_score_changes_only_the_lse(call, shift):
    if call.sinks is not None or call.softcap is not None:
        call = AttentionCall(call.q, call.k, call.v, mask=call.mask, bias=call.bias)
    bias = torch.zeros(1, 1, 1, 1, dtype=torch.float64) if call.bias is None else call.bias
    shifted = AttentionCall(call.q, call.k, call.v, mask=call.mask, bias=bias + shift)
    (out, found), (moved_out, moved) = (
        measure(which, Statistics(received=True), output=True) for which in (call, shifted)
    )
    torch.testing.assert_close(moved_out, out)
    torch.testing.assert_close(moved.entropy, found.entropy, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(moved.received, found.received)
    torch.testing.assert_close(moved.lse, found.lse + shift)


@given(st.data(), LENGTHS, LENGTHS)
def test_de_morgan(data, queries, keys):
    a, b = data.draw(mask_trees(queries, keys)), data.draw(mask_trees(queries, keys))
    sizes = {"batch": 2, "heads": 6}

    def full(mask):
        return mask.dense(queries, keys, **sizes).expand(2, 6, queries, keys)

    assert torch.equal(full(~(a & b)), full(~a | ~b))
    assert torch.equal(full(~(a | b)), full(~a & ~b))
    assert torch.equal(full(~~a), full(a))


@given(calls())
def test_grouped_heads_equal_repeated_heads(call):
    repeated = AttentionCall(
        call.q,
        call.k.repeat_interleave(call.group, 1),
        call.v.repeat_interleave(call.group, 1),
        mask=call.mask,
        bias=call.bias,
        softcap=call.softcap,
        sinks=call.sinks,
    )
    torch.testing.assert_close(chunked.attend(call), chunked.attend(repeated))


@given(calls(), st.integers(1, 200))
def test_any_tiling_gives_the_same(call, size):
    statistics = Statistics(top=3, received=True, offsets=True, blocks=(2, 3), block_peaks=True, sink=True)
    out, whole = measure(call, statistics, output=True)
    original, tiles.TILE_SCORES = tiles.TILE_SCORES, size
    try:
        small_out, small = measure(call, statistics, output=True)
    finally:
        tiles.TILE_SCORES = original
    torch.testing.assert_close(small_out, out)
    for name, value in whole.named().items():
        torch.testing.assert_close(small.named()[name], value, msg=name)


@given(calls())
def test_weights_and_sink_sum_to_one_where_something_is_seen(call):
    rows = tuple(range(call.sizes.queries))
    _, found = measure(call, Statistics(rows=rows, sink=True))
    total = found.rows.sum(-1) + found.sink
    expected = (found.lse > -torch.inf).to(total.dtype)
    torch.testing.assert_close(total, expected)
    assert (found.entropy >= 0).all()
    bound = (found.visible + (call.sinks is not None)).clamp_min(1).log()
    assert (found.entropy <= bound + 1e-9).all()


@given(calls())
def test_attention_received_is_attention_given(call):
    _, found = measure(call, Statistics(received=True, offsets=True, sink=True))
    given_away = (found.lse > -torch.inf).to(torch.float64) - found.sink
    torch.testing.assert_close(found.received.sum(-1), given_away.sum(-1))
    torch.testing.assert_close(found.offsets.sum(-1), given_away.sum(-1))


@given(st.lists(st.lists(st.floats(-50, 50) | st.just(-float("inf")), max_size=5), min_size=3, max_size=3))
def test_merging_states_is_associative(parts):
    a, b, c = (SoftmaxState.of(torch.tensor(part, dtype=torch.float64)) for part in parts)
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    torch.testing.assert_close(left.lse, right.lse)
    torch.testing.assert_close(left.entropy, right.entropy, atol=1e-9, rtol=1e-7)


@given(calls())
def test_the_chunked_kernel_is_the_formula(call):
    torch.testing.assert_close(chunked.attend(call), reference(call).output)
