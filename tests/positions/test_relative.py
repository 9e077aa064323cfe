"""Biases by distance against the papers' formulas and Hugging Face, part by part, and the way back to the table."""

import copy
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from multihead import masks
from multihead.core import AttentionCall
from multihead.kernels import chunked
from multihead.masks import Sizes
from multihead.positions import Alibi, T5Bias
from tests.accuracy import SIZES, check, random_call
from tests.positions.formulas import bucketed_bias, linear_bias

BATCH, HEADS, QUERIES, KEYS = (SIZES[name] for name in ("batch", "heads", "queries", "keys"))
ATTENTION = Sizes(BATCH, HEADS, QUERIES, KEYS)
PLACES = torch.arange(KEYS - QUERIES, KEYS)[None], torch.arange(KEYS)[None]
"""Where queries and keys stand when nobody says so."""

ROWS = (
    torch.tensor([[3, 4, 5, 90, 91, 92, 93], [0, 1, 2, 3, 4, 5, 40]]),
    torch.tensor([range(KEYS), range(7, 7 + KEYS)]),
)
"""Positions that differ between sequences, with gaps; the keys of the second start late, as after padding."""


def learned(heads=HEADS, dtype=torch.float32, **options):
    """A T5 bias with numbers in its table."""
    position = T5Bias(heads, **options).to(dtype)
    nn.init.normal_(position.table)
    return position


BOTH = {
    "Alibi": lambda: Alibi(HEADS),
    "T5": lambda: learned(max_distance=13, buckets=8),
    "T5, one direction": lambda: learned(max_distance=13, buckets=7, bidirectional=False),
}


class TestAlibi:
    """Slopes and signs."""

    @pytest.mark.parametrize(
        ("heads", "slopes"),
        [
            (1, [2**-8]),
            (2, [2**-4, 2**-8]),
            (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
            (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
            (12, [2.0**-power for power in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)]),
            (16, [2.0 ** -(head / 2) for head in range(1, 17)]),
        ],
    )
    def test_slopes_are_the_papers(self, heads, slopes):
        assert Alibi(heads).slopes.numbers == pytest.approx(slopes, rel=1e-15)

    @pytest.mark.parametrize("heads", [*range(1, 18), 71, 112])
    def test_slopes_are_blooms(self, heads):
        """Bloom adds slope times key; a query's row of the paper's bias is that less slope times query."""
        theirs = build_alibi_tensor(torch.ones(1, KEYS, dtype=torch.int64), heads, torch.float32)
        mine = Alibi(heads).bias_between().dense(Sizes(1, heads, 1, KEYS))[0]
        shifted = mine.double() + (KEYS - 1) * torch.tensor(Alibi(heads).slopes.numbers).double()[:, None, None]
        torch.testing.assert_close(shifted, theirs.double(), rtol=1e-5, atol=1e-6)

    def test_rows_of_a_causal_attention_are_blooms_up_to_a_constant(self):
        theirs = build_alibi_tensor(torch.ones(BATCH, KEYS, dtype=torch.int64), HEADS, torch.float32)
        theirs = theirs.view(BATCH, HEADS, 1, KEYS)
        mine = Alibi(HEADS).bias_between().dense(Sizes(BATCH, HEADS, KEYS, KEYS))
        unseen = ~masks.causal().dense(KEYS, KEYS)
        weights = [(bias.double().masked_fill(unseen, -torch.inf)).softmax(-1) for bias in (mine, theirs)]
        torch.testing.assert_close(weights[0].expand_as(weights[1]), weights[1], rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(("queries", "keys"), [(QUERIES, KEYS), (KEYS, QUERIES), (1, KEYS), (KEYS, KEYS)])
    def test_it_is_the_formula_in_both_directions(self, queries, keys):
        position = Alibi(HEADS)
        exact = linear_bias(position.slopes.numbers, range(keys - queries, keys), range(keys))[None]
        found = position.bias_between().dense(Sizes(BATCH, HEADS, queries, keys))
        check(found, exact, exact.float())

    def test_slopes_survive_conversion(self):
        before = Alibi(12).bias_between().dense(Sizes(1, 12, 1, KEYS))
        assert torch.equal(Alibi(12).bfloat16().bias_between().dense(Sizes(1, 12, 1, KEYS)), before)
        assert torch.equal(Alibi(12).half().float().bias_between().dense(Sizes(1, 12, 1, KEYS)), before)
        doubled = Alibi(12).double()
        exact = linear_bias(doubled.slopes.numbers, [KEYS - 1], range(KEYS))[None]
        check(doubled.bias_between().dense(Sizes(1, 12, 1, KEYS)), exact, exact)

    def test_nothing_is_learned(self):
        assert not list(Alibi(3).parameters())
        assert not Alibi(3).state_dict()


T5_OPTIONS = {
    "T5's": {},
    "few": {"buckets": 8, "max_distance": 13},
    "WavLM's": {"buckets": 320, "max_distance": 800},
    "the fewest": {"buckets": 4, "max_distance": 3},
}


def t5_attention(heads=HEADS, *, bidirectional, buckets=32, max_distance=128):
    config = T5Config(
        d_model=8,
        d_kv=2,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=max_distance,
        is_decoder=not bidirectional,
    )
    return T5Attention(config, has_relative_attention_bias=True, layer_idx=0)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("options", T5_OPTIONS.values(), ids=T5_OPTIONS)
class TestT5:
    """Buckets and table."""

    def test_every_distance_is_in_their_bucket(self, options, bidirectional):
        position = T5Bias(1, bidirectional=bidirectional, **options)
        reach = 2 * position.max_distance + 3
        theirs = T5Attention._relative_position_bucket(
            -torch.arange(-reach, reach + 1), bidirectional, position.buckets, position.max_distance
        )
        assert [position.bucket(distance) for distance in range(-reach, reach + 1)] == theirs.tolist()
        assert set(theirs.tolist()) <= set(range(position.buckets))

    @pytest.mark.parametrize(("queries", "keys"), [(QUERIES, KEYS), (331, 331), (1, 1009)])
    def test_the_bias_is_theirs(self, options, bidirectional, queries, keys):
        position, theirs = learned(bidirectional=bidirectional, **options), None
        theirs = t5_attention(bidirectional=bidirectional, **options)
        with torch.no_grad():
            theirs.relative_attention_bias.weight.copy_(position.table)
            expected = theirs.compute_bias(queries, keys, past_seen_tokens=keys - queries)
            found = position.bias_between().dense(Sizes(BATCH, HEADS, queries, keys))
        assert torch.equal(found, expected)
        assert not torch.equal(found, expected.flip(-1))

    def test_it_is_the_formula(self, options, bidirectional):
        position = learned(bidirectional=bidirectional, **options)
        distances = ROWS[0][:, :, None] - ROWS[1][:, None, :]
        plain = bucketed_bias(
            position.table, distances, position.buckets, position.max_distance, bidirectional
        ).permute(0, 3, 1, 2)
        assert torch.equal(position.bias_between(*ROWS).dense(ATTENTION), plain)


def test_the_directions_differ():
    both, one = learned(), learned(bidirectional=False)
    with torch.no_grad():
        one.table.copy_(both.table)
    later = (..., 0, slice(KEYS - QUERIES + 1, None))
    found, expected = (position.bias_between().dense(ATTENTION)[later] for position in (one, both))
    assert not torch.equal(found, expected)
    assert torch.equal(found, one.table[0][:, None].expand(HEADS, QUERIES - 1)[None])


@pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
class TestParts:
    """What any kernel may ask of a bias."""

    def test_places_are_positions(self, make):
        position = make()
        assert torch.equal(position.bias_between(*PLACES).dense(ATTENTION), position.bias_between().dense(ATTENTION))
        moved = tuple(places + 1009 for places in PLACES)
        assert torch.equal(position.bias_between(*moved).dense(ATTENTION), position.bias_between().dense(ATTENTION))
        shifted = (PLACES[0] + 1, PLACES[1])
        assert not torch.equal(
            position.bias_between(*shifted).dense(ATTENTION), position.bias_between().dense(ATTENTION)
        )

    @pytest.mark.parametrize("places", [(None, None), PLACES, ROWS], ids=["none", "one row", "rows"])
    def test_parts_are_cut_from_the_whole(self, make, places):
        bias = make().bias_between(*places)
        whole = bias.dense(ATTENTION)
        assert whole.shape == (BATCH if places is ROWS else 1, HEADS, QUERIES, KEYS)
        queries, keys = torch.tensor([5, 0, 2]), torch.tensor([10, 3, 4, 1, 7])
        assert torch.equal(bias.values(queries, keys, ATTENTION), whole[:, :, queries][..., keys])

    def test_every_sequence_has_its_own_rows(self, make):
        position = make()
        whole = position.bias_between(*ROWS).dense(ATTENTION)
        for item in range(BATCH):
            alone = position.bias_between(*(places[item : item + 1] for places in ROWS)).dense(
                Sizes(1, HEADS, QUERIES, KEYS)
            )
            assert torch.equal(whole[item : item + 1], alone)
        assert not torch.equal(whole[0], whole[1])

    def test_one_row_of_positions_beside_many(self, make):
        position = make()
        found = position.bias_between(ROWS[0], ROWS[1][:1]).dense(ATTENTION)
        assert torch.equal(found, position.bias_between(ROWS[0], ROWS[1][:1].expand(BATCH, -1)).dense(ATTENTION))

    @pytest.mark.parametrize("places", [(None, None), ROWS], ids=["none", "rows"])
    @pytest.mark.parametrize("dropped", [0, 3])
    def test_without_the_first_keys(self, make, places, dropped):
        bias = make().bias_between(*places)
        fewer = Sizes(BATCH, HEADS, QUERIES, KEYS - dropped)
        left = bias.without_first(dropped)
        left.check(fewer)
        assert torch.equal(left.dense(fewer), bias.dense(ATTENTION)[..., dropped:])

    def test_over_other_numbers(self, make):
        bias = make().bias_between(*ROWS)
        (numbers,) = bias.tensors()
        twice = bias.over(iter([2 * numbers]))
        assert torch.equal(twice.dense(ATTENTION), 2 * bias.dense(ATTENTION))
        assert type(twice) is type(bias)
        with pytest.raises(FrozenInstanceError, match=r"cannot assign to field .numbers."):
            bias.numbers = numbers

    def test_in_an_attention(self, make):
        position = make()
        call = random_call(mask=masks.causal(), bias=None)
        bias = position.bias_between(*ROWS)
        with torch.no_grad():
            found = chunked.attend(AttentionCall(call.q, call.k, call.v, mask=call.mask, bias=bias))
            expected = chunked.attend(AttentionCall(call.q, call.k, call.v, mask=call.mask, bias=bias.dense(ATTENTION)))
        assert torch.equal(found, expected)

    def test_copies(self, make):
        position = make()
        for copied in (copy.deepcopy(position), pickle.loads(pickle.dumps(position))):
            assert torch.equal(
                copied.bias_between(*ROWS).dense(ATTENTION), position.bias_between(*ROWS).dense(ATTENTION)
            )
            assert repr(copied) == repr(position)

    def test_built_without_memory(self, make):
        with torch.device("meta"):
            position = make()
            assert position.bias_between().dense(ATTENTION).is_meta
        position, like = position.to_empty(device="cpu"), make()
        position.load_state_dict(like.state_dict())
        assert torch.equal(position.bias_between(*ROWS).dense(ATTENTION), like.bias_between(*ROWS).dense(ATTENTION))

    def test_loaded_in_place_of_no_memory(self, make):
        """Constants that stayed on another device follow the positions, or the table."""
        like = make()
        with torch.device("meta"):
            position = make()
        position.load_state_dict(like.state_dict(), assign=True)
        assert torch.equal(position.bias_between(*ROWS).dense(ATTENTION), like.bias_between(*ROWS).dense(ATTENTION))


COMPILED = """
import torch
from multihead.masks import Sizes
from multihead.positions import Alibi, T5Bias

sizes = Sizes(batch=2, heads=6, queries=7, keys=11)
rows = torch.arange(7).expand(2, 7) + torch.tensor([[3], [90]]), torch.arange(11)[None]
for position in (Alibi(6), T5Bias(6), T5Bias(6, bidirectional=False)):
    for parameter in position.parameters():
        torch.nn.init.normal_(parameter)
    for places in ((None, None), rows):
        def dense(*places):
            return position.bias_between(*places).dense(sizes)

        whole = torch.compile(dense, fullgraph=True, backend="aot_eager")
        assert torch.equal(whole(*places), dense(*places))
        assert whole(*places).abs().sum() > 0
"""


def test_compiled():
    """In a process without the shape checks: the compiler cannot follow what they do to a dataclass."""
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILED], check=True)


@given(st.sampled_from(sorted(BOTH)), st.integers(1, 40), st.integers(1, 40), st.data())
def test_any_part_of_any_attention(kind, queries, keys, data):
    sizes = Sizes(1, HEADS, queries, keys)
    bias = BOTH[kind]().bias_between()
    some = [
        torch.tensor(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=7))) for size in (queries, keys)
    ]
    assert torch.equal(bias.values(*some, sizes), bias.dense(sizes)[:, :, some[0]][..., some[1]])


class TestLearning:
    """The way back to T5's table."""

    @pytest.mark.parametrize("places", [PLACES, ROWS], ids=["one row", "rows"])
    @pytest.mark.parametrize("bidirectional", [True, False])
    def test_gradient_through_a_kernel(self, places, bidirectional):
        position = learned(buckets=8, max_distance=13, bidirectional=bidirectional)
        call = random_call(mask=masks.sliding_window(left=5, right=2))
        weights = torch.randn(BATCH, HEADS, QUERIES, SIZES["value_dim"], dtype=torch.float64)
        out = chunked.attend(AttentionCall(call.q, call.k, call.v, mask=call.mask, bias=position.bias_between(*places)))
        (out * weights.float()).sum().backward()
        exact, plain = (
            self.plain_gradient(position, call, places, weights, dtype) for dtype in (torch.float64, torch.float32)
        )
        check(position.table.grad, exact, plain)
        assert position.table.grad.abs().max() > 1e-3

    def plain_gradient(self, position, call, places, weights, dtype):
        """By autograd of softmax(q k + table[bucket]) v, written out."""
        table = position.table.detach().to(dtype).requires_grad_()
        distances = places[0][:, :, None] - places[1][:, None, :]
        bias = bucketed_bias(table, distances, position.buckets, position.max_distance, position.bidirectional).permute(
            0, 3, 1, 2
        )
        q, k, v = call.q.to(dtype), *(tensor.to(dtype).repeat_interleave(call.group, 1) for tensor in (call.k, call.v))
        scores = q @ k.transpose(-2, -1) * call.factor + bias
        scores = scores.masked_fill(~call.mask.dense(QUERIES, KEYS), -torch.inf)
        (scores.softmax(-1) @ v * weights.to(dtype)).sum().backward()
        return table.grad

    def test_it_starts_without_a_preference(self):
        position = learned()
        position.reset_parameters()
        assert torch.equal(position.table, torch.zeros(32, HEADS))
        assert torch.equal(T5Bias(HEADS).table, position.table)

    def test_the_table_is_all_that_a_checkpoint_holds(self):
        assert list(learned().state_dict()) == ["table"]
        assert T5Bias(3, dtype=torch.bfloat16).table.dtype == torch.bfloat16
        assert T5Bias(3, device="meta").table.is_meta

    def test_no_type_but_the_tables(self):
        position = learned(dtype=torch.bfloat16)
        found = position.bias_between(*ROWS).dense(ATTENTION)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, copy.deepcopy(position).float().bias_between(*ROWS).dense(ATTENTION).bfloat16())


@pytest.mark.usefixtures("as_users_run")
class TestRefusals:
    """What does not fit."""

    @pytest.mark.parametrize("make", [Alibi, T5Bias])
    def test_heads(self, make):
        with pytest.raises(ValueError, match="num_heads=0 is too small"):
            make(0)
        with pytest.raises(TypeError, match=r"num_heads=8.0 is a float"):
            make(8.0)
        make(8).check(8, 64)
        with pytest.raises(
            ValueError, match=f"{make.__name__} has numbers for 8 heads, but the attention has 6: make it"
        ):
            make(8).check(6, 64)
        with pytest.raises(ValueError, match="has numbers for 5 heads, but the attention has 6"):
            make(5).bias_between().check(ATTENTION)

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"buckets": 2}, ValueError, "buckets=2 is too small, expected a whole number of at least 4"),
            ({"buckets": 1, "bidirectional": False}, ValueError, "buckets=1 is too small, .* at least 2"),
            ({"buckets": 9}, ValueError, "buckets is 9, expected an even number: each direction has half"),
            ({"max_distance": 8}, ValueError, "max_distance is 8, expected more than 8: 8 distances have their own"),
            ({"max_distance": 16, "bidirectional": False}, ValueError, "max_distance is 16, expected more than 16"),
            ({"max_distance": 128.0}, TypeError, r"max_distance=128.0 is a float"),
            ({"buckets": True}, TypeError, "buckets=True is a bool"),
        ],
    )
    def test_buckets(self, options, error, words):
        with pytest.raises(error, match=words):
            T5Bias(HEADS, **options)

    @pytest.mark.parametrize("places", [(ROWS[0], None), (None, ROWS[1])])
    @pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
    def test_one_side_alone(self, make, places):
        with pytest.raises(ValueError, match="of queries or of keys alone: a distance needs both, or neither"):
            make().bias_between(*places)

    @pytest.mark.parametrize("make", BOTH.values(), ids=BOTH)
    def test_positions_of_other_tokens(self, make):
        for wrong, words in (
            ((ROWS[0][:, 1:], ROWS[1]), r"positions of queries have shape \(2, 6\), expected \(2, 7\), or \(1, 7\)"),
            ((ROWS[0], ROWS[1][:, 1:]), r"positions of keys have shape \(2, 10\), expected \(2, 11\), or \(1, 11\)"),
            ((ROWS[0].repeat(2, 1), ROWS[1]), r"positions of queries have shape \(4, 7\)"),
            ((ROWS[0], ROWS[1].to("meta")), "positions of keys are on meta, expected cpu"),
        ):
            with pytest.raises(ValueError, match=words):
                make().bias_between(*wrong).check(ATTENTION)
        make().bias_between(*ROWS).check(ATTENTION)

    def test_positions_that_are_no_whole_numbers(self):
        with pytest.raises(TypeError, match=r"positions of keys have dtype torch.float32, expected torch.int64"):
            Alibi(HEADS).bias_between(ROWS[0], ROWS[1].float()).check(ATTENTION)
