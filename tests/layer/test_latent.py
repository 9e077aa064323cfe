"""Latent attention against its equations, in both of its forms and on every cache."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import multihead as mh
from multihead.layer import Attend
from multihead.layer.latent import MultiHeadLatentAttention
from multihead.positions import Alibi, Rotary, T5Bias
from tests.accuracy import check, random_bool
from tests.layer.latent_equations import EMBED, HEADS, SIZES, by_equations, check_latent, forced, made, seen_calls
from tests.layer.test_cache import CACHES, TOKENS, in_pieces, pieces

OPTIONS = {
    "plain": {},
    "narrow queries": {"q_rank": 13},
    "other values": {"value_dim": 7},
    "all biases": {"bias": True, "q_rank": 13},
    "scale": {"scale": 0.5},
    "no norms": {"norm": None, "q_rank": 13},
    "LayerNorm": {"norm": nn.LayerNorm, "value_dim": 2},
    "rank below the heads": {"kv_rank": 2},
}

POSITIONS = {
    "none": lambda: None,
    "rotary": lambda: Rotary(4),
    "interleaved": lambda: Rotary(4, pairs="interleaved"),
    "alibi": lambda: Alibi(HEADS),
    "t5": lambda: T5Bias(HEADS, buckets=8, max_distance=7, bidirectional=False),
}

MASKS = {"none": None, "causal": mh.masks.causal(), "padding": mh.masks.padding(random_bool(2, 11))}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_equals_the_equations(options, mask):
    check_latent(made(position=Rotary(4), **options), torch.randn(2, 11, EMBED), mask=mask)


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("given_positions", [False, True], ids=["by index", "given"])
def test_positions_equal_the_equations(position, given_positions):
    positions = torch.randint(0, 30, (2, 11)) if given_positions and position() is not None else None
    layer = made(position=position(), q_rank=13)
    bias = torch.randn(1, HEADS, 11, 11)
    check_latent(layer, torch.randn(2, 11, EMBED), mask=MASKS["causal"], positions=positions)
    check_latent(layer, torch.randn(2, 11, EMBED), mask=MASKS["padding"], positions=positions, bias=bias)


def test_the_comparison_would_notice_a_missing_part_and_swapped_heads():
    layer = made(position=Rotary(4), q_rank=13)
    x = torch.randn(2, 11, EMBED)
    for part in ("position", "q_norm", "kv_norm"):
        other = copy.deepcopy(layer)
        setattr(other, part, None)
        assert (by_equations(other, x) - layer(x)).abs().max() > 1e-2
    other = copy.deepcopy(layer)
    other.scale = 0.5
    assert (by_equations(other, x) - layer(x)).abs().max() > 1e-2
    layer.attend = _Rolled()
    with pytest.raises(AssertionError, match="output: error"):
        check_latent(layer, x)


class _Rolled(Attend):
    def forward(self, call):
        return super().forward(call).roll(1, 1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", ["absorbed", "expanded"])
def test_both_forms_equal_the_equations(options, form):
    layer = forced(made(position=Rotary(4), **options).eval(), form)
    wide = copy.deepcopy(layer).double()
    x, bias = torch.randn(2, 11, EMBED), torch.randn(HEADS, 11, 11)
    calls = seen_calls(layer)
    with torch.no_grad():
        found = in_pieces(layer, x, mh.GrowingCache(), [4, 5, 1, 1], mask=lambda keys: mh.masks.causal(), bias=bias)
        exact = by_equations(wide, x.double(), mask=mh.masks.causal(), bias=bias.double())
        check(found, exact, by_equations(layer, x, mask=mh.masks.causal(), bias=bias))
    expected = (1, layer.kv_rank + 4, layer.kv_rank) if form == "absorbed" else (HEADS, 5 + 4, layer.value_dim)
    assert {(call.k.shape[1], call.k.shape[3], call.v.shape[3]) for call in calls} == {expected}


class _Multiplying(Attend):
    """Attention as two products per head, which torch's counter of multiplications knows."""

    def forward(self, call):
        k, v = (tensor.repeat_interleave(call.group, 1) for tensor in (call.k, call.v))
        return (call.q @ k.mT).softmax(-1) @ v


@settings(max_examples=25)
@given(
    sizes=st.fixed_dictionaries({name: st.integers(1, 12) for name in (*SIZES, "value_dim")}),
    past=st.integers(0, 60),
    queries=st.integers(1, 30),
)
def test_the_form_is_the_one_that_multiplies_less(sizes, past, queries):
    layer = MultiHeadLatentAttention(EMBED, HEADS, **sizes)
    layer.attend = _Multiplying()
    counts, calls = {}, seen_calls(layer)
    for form in ("absorbed", "expanded", "chosen"):
        run = layer if form == "chosen" else forced(layer, form)
        cache = mh.GrowingCache()
        with torch.no_grad():
            if past:
                run(torch.zeros(1, past, EMBED), cache=cache)
            with FlopCounterMode(display=False) as counter:
                run(torch.zeros(1, queries, EMBED), cache=cache)
        counts[form] = counter.get_total_flops()
    assert counts["chosen"] == min(counts["absorbed"], counts["expanded"])
    assert layer.absorbs(queries, past + queries) == (counts["absorbed"] < counts["expanded"])
    assert (calls[-1].k.shape[1] == 1) == layer.absorbs(queries, past + queries)


def test_without_a_cache_nothing_is_absorbed():
    layer = made(kv_rank=2)
    calls = seen_calls(layer)
    assert layer.absorbs(7, 7)
    layer(torch.randn(2, 7, EMBED))
    assert calls[0].k.shape == (2, HEADS, 7, 9)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize(
    "position", [POSITIONS[name] for name in ("none", "rotary", "t5")], ids=("none", "rotary", "t5")
)
@pytest.mark.parametrize("padded", [None, "left", "right"])
@settings(max_examples=6)
@given(
    lengths=pieces(),
    form=st.sampled_from(["absorbed", "expanded", "chosen"]),
    given_positions=st.booleans(),
    given_bias=st.booleans(),
)
def test_pieces_equal_one_pass(kind, position, padded, lengths, form, given_positions, given_bias):
    torch.manual_seed(0)
    layer = made(position=position(), value_dim=7).double().eval()
    x = torch.randn(2, TOKENS, EMBED, dtype=torch.float64)
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    if padded:
        valid[1, slice(0, 4) if padded == "left" else slice(6, 9)] = False
    positions = (valid.cumsum(1) - 1).clamp_min(0) if given_positions and position() is not None else None
    bias = torch.randn(HEADS, TOKENS, TOKENS, dtype=torch.float64) if given_bias else None

    def mask(keys):
        found = mh.masks.causal() & mh.masks.padding(valid[:, :keys])
        return found & mh.masks.sliding_window(5) if kind == "sliding" else found

    with torch.no_grad():
        whole = layer(x, mask=mask(TOKENS), positions=positions, bias=bias)
    cache = CACHES[kind]()
    run = layer if form == "chosen" else forced(layer, form)
    found = in_pieces(run, x, cache, lengths, mask=mask, positions=positions, bias=bias)
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=1e-12)
    assert cache.length == TOKENS


def test_the_comparison_would_notice_steps_without_their_past():
    layer = made().double()
    x = torch.randn(2, 7, EMBED, dtype=torch.float64)
    whole = layer(x, mask=mh.masks.causal())
    with torch.no_grad():
        alone = layer(x[:, 6:], mask=mh.masks.causal(), cache=mh.GrowingCache())
    assert (alone - whole[:, 6:]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", CACHES)
def test_beams_are_reordered_and_multiplied(kind):
    layer = made(position=Rotary(4)).double()
    x, last = torch.randn(3, 6, EMBED, dtype=torch.float64), torch.randn(5, 1, EMBED, dtype=torch.float64)
    order = torch.tensor([2, 2, 0, 1, 1])
    mask, cache = mh.masks.causal() & mh.masks.sliding_window(5), CACHES[kind]()
    with torch.no_grad():
        layer(x[:, :4], mask=mask, cache=cache)
        layer(x[:, 4:], mask=mask, cache=cache)
        cache.reorder(order)
        found = layer(last, mask=mask, cache=cache)
        torch.testing.assert_close(found, layer(torch.cat([x[order], last], 1), mask=mask)[:, -1:])


def test_memory_is_that_on_paper():
    """kv_rank + rope_dim numbers a token and nothing else, however many heads there are."""
    layer = made(position=Rotary(4))
    token = 3 * (11 + 4) * 4
    growing, fixed, sliding = mh.GrowingCache(), mh.FixedCache(1000), mh.SlidingCache(64)
    mask = mh.masks.causal() & mh.masks.sliding_window(64)
    with torch.no_grad():
        for cache in (growing, fixed, sliding):
            layer(torch.randn(3, 500, EMBED), mask=mask, cache=cache)
        assert (growing.nbytes, fixed.nbytes, sliding.nbytes) == (token * 500, token * 1000, token * (63 + 16))
        for _ in range(20):
            for cache in (growing, fixed, sliding):
                layer(torch.randn(3, 1, EMBED), mask=mask, cache=cache)
    assert token * 520 <= growing.nbytes <= token * 520 * 1.25
    assert (fixed.nbytes, sliding.nbytes) == (token * 1000, token * (63 + 16))


def test_weights_are_equal_in_both_forms_and_observing_changes_nothing():
    layer = made(position=Rotary(4), value_dim=7).eval()
    wide = copy.deepcopy(layer).double()
    x = torch.randn(2, 11, EMBED)
    statistics = mh.Statistics(entropy=True, rows=(0, 1))

    def step(layer, x, form):
        layer, cache = forced(layer, form), mh.GrowingCache()
        with torch.no_grad():
            layer(x[:, :9], mask=mh.masks.causal(), cache=cache)
            again = copy.deepcopy(cache)
            with mh.observe(layer, statistics=statistics) as seen:
                output = layer(x[:, 9:], mask=mh.masks.causal(), cache=cache)
            assert torch.equal(output, layer(x[:, 9:], mask=mh.masks.causal(), cache=again))
        assert seen.check().passed
        found = seen.recording().layer(0)
        assert found.q.shape[-1] == (15 if form == "absorbed" else 9)
        return found.statistics

    absorbed, expanded = (step(layer, x, form) for form in ("absorbed", "expanded"))
    exact = step(wide, x.double(), "expanded")
    for name in ("lse", "entropy", "rows"):
        check(getattr(absorbed, name), getattr(exact, name).double(), getattr(expanded, name), name)
    assert absorbed.rows.shape == (2, HEADS, 2, 11)
