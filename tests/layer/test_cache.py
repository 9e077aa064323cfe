"""Prefill and steps on a cache give what one pass gives."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multihead as mh
from multihead.layer import KeysValues
from multihead.layer.cache import SLACK
from multihead.positions import Alibi, Rotary, T5Bias
from tests.layer.formula import randomised

TOKENS = 29


def made(**options):
    return randomised(mh.MultiHeadAttention(48, 6, num_kv_heads=2, **options)).double().eval()


def in_pieces(layer, x, cache, lengths, *, mask, positions=None, bias=None):
    """The layer over x, piece after piece, on a cache; ``mask(keys)`` is the mask where there are so many keys."""
    outputs, start = [], 0
    with torch.inference_mode():
        for length in lengths:
            stop = start + length
            outputs.append(
                layer(
                    x[:, start:stop],
                    mask=mask(stop),
                    positions=None if positions is None else positions[:, start:stop],
                    bias=None if bias is None else bias[..., start:stop, :stop],
                    cache=cache,
                )
            )
            start = stop
    return torch.cat(outputs, 1)


@st.composite
def pieces(draw, total: int = TOKENS):
    lengths = []
    while sum(lengths) < total:
        lengths.append(draw(st.integers(1, min(total - sum(lengths), draw(st.sampled_from([1, 3, total]))))))
    return lengths


CACHES = {
    "growing": mh.GrowingCache,
    "fixed": lambda: mh.FixedCache(TOKENS),
    "sliding": lambda: mh.SlidingCache(5),
}

POSITIONS = {
    "none": lambda: None,
    "rotary": lambda: Rotary(8),
    "alibi": lambda: Alibi(6),
    "t5": lambda: T5Bias(6, buckets=8, max_distance=7, bidirectional=False),
}


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("padded", [None, "left", "right"])
@settings(max_examples=6)
@given(lengths=pieces(), given_positions=st.booleans(), given_bias=st.booleans())
def test_pieces_equal_one_pass(kind, position, padded, lengths, given_positions, given_bias):
    torch.manual_seed(0)
    layer = made(position=position(), softcap=3.0)
    x = torch.randn(2, TOKENS, 48, dtype=torch.float64)
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded == "left":
        valid[1, :4] = False
    elif padded == "right":
        valid[1, 6:9] = False
    positions = (valid.cumsum(1) - 1).clamp_min(0) if given_positions and position() is not None else None
    bias = torch.randn(6, TOKENS, TOKENS, dtype=torch.float64) if given_bias else None

    def mask(keys):
        found = mh.masks.causal() & mh.masks.padding(valid[:, :keys])
        return found & mh.masks.sliding_window(5) if kind == "sliding" else found

    with torch.inference_mode():
        whole = layer(x, mask=mask(TOKENS), positions=positions, bias=bias)
    cache = CACHES[kind]()
    found = in_pieces(layer, x, cache, lengths, mask=mask, positions=positions, bias=bias)
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-12)
    assert cache.length == TOKENS


def test_the_comparison_would_notice_steps_without_their_past():
    layer = made()
    x = torch.randn(2, 7, 48, dtype=torch.float64)
    whole = layer(x, mask=mh.masks.causal())
    with torch.inference_mode():
        assert not torch.allclose(layer(x[:, 6:], mask=mh.masks.causal(), cache=mh.GrowingCache()), whole[:, 6:])


def test_documents_go_on_in_a_cache():
    layer = made()
    x = torch.randn(1, 13, 48, dtype=torch.float64)
    ids = torch.tensor([[0] * 4 + [1] * 9])
    with torch.inference_mode():
        whole = layer(x, mask=mh.masks.causal() & mh.masks.documents(ids))
        cache = mh.GrowingCache()
        layer(x[:, :11], mask=mh.masks.causal() & mh.masks.documents(ids[:, :11]), cache=cache)
        step = layer(x[:, 11:], mask=mh.masks.causal() & mh.masks.documents(ids[:, 11:], ids), cache=cache)
    torch.testing.assert_close(step, whole[:, 11:])


def test_beams_are_reordered_and_multiplied():
    layer = made(position=Rotary(8))
    x = torch.randn(3, 6, 48, dtype=torch.float64)
    order = torch.tensor([2, 2, 0, 1, 1])
    last = torch.randn(5, 1, 48, dtype=torch.float64)
    for make in CACHES.values():
        cache = make()
        mask = mh.masks.causal() & mh.masks.sliding_window(5)
        with torch.inference_mode():
            layer(x[:, :4], mask=mask, cache=cache)
            layer(x[:, 4:], mask=mask, cache=cache)
            cache.reorder(order)
            found = layer(last, mask=mask, cache=cache)
            alone = layer(torch.cat([x[order], last], 1), mask=mask)[:, -1:]
        torch.testing.assert_close(found, alone)


def test_memory_is_that_on_paper():
    """Two tensors of kv heads only: 2 · B · Hkv · D · itemsize bytes a token."""
    layer = mh.MultiHeadAttention(48, 6, num_kv_heads=2)
    token = 2 * 3 * 2 * 8 * 4
    growing, fixed, sliding = mh.GrowingCache(), mh.FixedCache(1000), mh.SlidingCache(64)
    assert growing.nbytes == fixed.nbytes == sliding.nbytes == 0
    with torch.no_grad():
        for cache in (growing, fixed, sliding):
            layer(torch.randn(3, 500, 48), mask=mh.masks.causal() & mh.masks.sliding_window(64), cache=cache)
        assert growing.nbytes == token * 500
        assert fixed.nbytes == token * 1000
        assert sliding.nbytes == token * (63 + 16)
        held = []
        for _ in range(100):
            for cache in (growing, fixed, sliding):
                layer(torch.randn(3, 1, 48), mask=mh.masks.causal() & mh.masks.sliding_window(64), cache=cache)
            held.append(sliding.nbytes)
        assert set(held) == {token * (63 + 16)}
        assert token * 600 <= growing.nbytes <= token * 600 * 1.25
        assert fixed.nbytes == token * 1000
    growing.reset()
    assert (growing.nbytes, growing.length) == (0, 0)


def test_the_window_of_a_sliding_cache_moves_seldom():
    cache = mh.SlidingCache(4)
    k = torch.zeros(1, 1, 1, 2)
    places = []
    for _ in range(5 * SLACK):
        places.append(cache.update(k, k).k.data_ptr())
    moved_back = sum(later < earlier for earlier, later in pairwise(places))
    assert moved_back <= 5


def test_filled_in_inference_mode_and_gone_on_outside():
    layer = made()
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    cache = mh.GrowingCache()
    with torch.inference_mode():
        layer(x[:, :3], mask=mh.masks.causal(), cache=cache)
    with torch.no_grad():
        found = layer(x[:, 3:], mask=mh.masks.causal(), cache=cache)
        torch.testing.assert_close(found, layer(x, mask=mh.masks.causal())[:, 3:])


def filled(cache, batch=2, heads=2):
    k = torch.zeros(batch, heads, 3, 8)
    cache.update(k, k)
    return cache


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mh.FixedCache(0), "capacity=0 is too small"),
        (lambda: mh.SlidingCache(0), "window=0 is too small"),
        (
            lambda: filled(filled(mh.FixedCache(5))),
            "the cache is full: it has room for 5 tokens, holds 3, and 3 more came; make a larger FixedCache",
        ),
        (lambda: filled(filled(mh.GrowingCache()), batch=3), "k has batch 3 but the cache holds batch 2: make a new"),
        (
            lambda: filled(filled(mh.GrowingCache()), heads=4),
            r"k \(2, 4, 3, 8\) does not continue a cache of 2 heads of 8: each layer needs a cache of its own",
        ),
        (
            lambda: filled(mh.GrowingCache()).update(*[torch.zeros(2, 2, 1, 8, dtype=torch.float64)] * 2),
            "k is torch.float64 on cpu but the cache holds torch.float32",
        ),
        (
            lambda: filled(mh.GrowingCache()).update(*[torch.zeros(2, 2, 1, 8)] * 2, torch.tensor([[3]])),
            "positions must be given with every call that fills a cache, or with none: the 3 tokens before had none",
        ),
        (
            lambda: mh.MultiHeadAttention(24, 3)(torch.zeros(1, 2, 24), cache=mh.GrowingCache()),
            r"a cache keeps no gradients: call the layer under torch.no_grad\(\)",
        ),
    ],
)
def test_refuses_with_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_full_cache_keeps_what_it_has():
    cache = filled(mh.FixedCache(5))
    with pytest.raises(ValueError, match="the cache is full"):
        filled(cache)
    assert cache.length == 3
    k = torch.ones(2, 2, 2, 8)
    assert isinstance(cache.update(k, k), KeysValues)
    assert cache.length == 5
