"""Rotary embeddings against complex numbers in float64, against Hugging Face, and against what they promise."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim
from transformers import LlamaConfig
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_turn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama_turn

from multihead.positions import NTK, Linear, Llama3, Rotary, YaRN
from tests.accuracy import check
from tests.positions.formulas import turned

BATCH, HEADS, TOKENS, DIM = 2, 3, 7, 26

PLACES = {
    "one row": torch.arange(11, 11 + TOKENS)[None],
    "a row for each sequence": torch.tensor([[0, 1, 2, 3, 5, 8, 13], [977, 3, 3, 101, 0, 2, 4099]]),
    "int32": torch.arange(TOKENS, dtype=torch.int32)[None],
    "before the start": torch.arange(-3, TOKENS - 3)[None],
}

VARIANTS = {
    "plain": {},
    "another base": {"base": 100.0},
    "partial": {"fraction": 6 / DIM},
    "YaRN": {"scaling": YaRN(5.0, 127)},
    "partial YaRN": {"scaling": YaRN(5.0, 127), "fraction": 10 / DIM},
    "NTK": {"scaling": NTK(5.0)},
}


def features(dtype=torch.float64, batch=BATCH, heads=HEADS, tokens=TOKENS, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, heads, dim, generator=generator).to(dtype).transpose(1, 2)


def formula(rotary, x, places, dtype=torch.float64):
    return turned(x, places, rotary.frequencies, rotary.pairs, dtype, rotary.amplitude)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("pairs", ["halves", "interleaved"])
def test_it_turns_complex_numbers(pairs, options, places, dtype):
    rotary, x = Rotary(DIM, pairs=pairs, **options), features(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    found = rotary.turn(x, places)
    assert found.dtype == dtype
    check(found, formula(rotary, x, places), formula(rotary, x, places, wide).to(dtype))


@pytest.mark.parametrize("pairs", ["halves", "interleaved"])
def test_gradients(pairs):
    rotary, places = Rotary(DIM, pairs=pairs, fraction=10 / DIM), PLACES["a row for each sequence"]
    weights = torch.randn(BATCH, HEADS, TOKENS, DIM, dtype=torch.float64)
    gradients = []
    for turn in (rotary.turn, lambda x, places: formula(rotary, x, places)):
        x = features().requires_grad_()
        (turn(x, places) * weights).sum().backward()
        gradients.append(x.grad)
    check(gradients[0], gradients[1], gradients[1])


class TestTheComparisonCouldFail:
    """The bar rejects what people get wrong."""

    @pytest.fixture
    def rotary(self):
        return Rotary(DIM)

    def reject(self, rotary, wrong):
        x, places = features(torch.float32), PLACES["one row"]
        exact, plain = formula(rotary, x, places), formula(rotary, x, places, torch.float32)
        check(rotary.turn(x, places), exact, plain)
        with pytest.raises(AssertionError, match="error"):
            check(wrong(x, places), exact, plain)

    def test_other_pairs(self, rotary):
        self.reject(rotary, Rotary(DIM, pairs="interleaved").turn)

    def test_another_base(self, rotary):
        self.reject(rotary, Rotary(DIM, base=10_001.0).turn)

    def test_shifted_positions(self, rotary):
        self.reject(rotary, lambda x, places: rotary.turn(x, places + 1))

    def test_the_other_direction(self, rotary):
        self.reject(rotary, lambda x, places: rotary.turn(x, -places))

    def test_part_of_the_features(self, rotary):
        self.reject(rotary, Rotary(DIM, fraction=24 / DIM).turn)

    def test_rounded_frequencies(self, rotary):
        self.reject(
            rotary,
            lambda x, places: turned(
                x, places, torch.tensor(rotary.frequencies).bfloat16().tolist(), "halves", torch.float32
            ),
        )


HUGGING_FACE = {
    "default": (None, {"rope_type": "default"}),
    "linear": (Linear(3.0), {"rope_type": "linear", "factor": 3.0}),
    "yarn": (YaRN(5.0, 127), {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 127}),
    "llama3": (
        Llama3(original_length=127),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 127,
        },
    ),
}


@pytest.mark.parametrize(("scaling", "parameters"), HUGGING_FACE.values(), ids=HUGGING_FACE)
def test_halves_are_llamas(scaling, parameters):
    config = LlamaConfig(
        hidden_size=HEADS * DIM, num_attention_heads=HEADS, rope_parameters={"rope_theta": 10_000.0, **parameters}
    )
    places = PLACES["a row for each sequence"]
    q, k = features(torch.float32), features(torch.float32, heads=1, seed=1)
    theirs = llama_turn(q, k, *LlamaRotaryEmbedding(config)(q, places))
    rotary = Rotary(DIM, scaling=scaling)
    for x, plain in zip((q, k), theirs, strict=True):
        check(rotary.turn(x, places), formula(rotary, x, places), plain)


def test_interleaved_are_gptjs():
    rotary, x, places = Rotary(DIM, pairs="interleaved"), features(torch.float32), PLACES["one row"]
    angles = places[..., None] * torch.tensor(rotary.frequencies)
    theirs = gptj_turn(x.transpose(1, 2), angles.sin(), angles.cos()).transpose(1, 2)
    check(rotary.turn(x, places), formula(rotary, x, places), theirs)


def test_features_that_do_not_turn_are_untouched():
    rotary, x = Rotary(DIM, fraction=6 / DIM, scaling=YaRN(5.0, 127)), features(torch.bfloat16)
    found = rotary.turn(x, PLACES["one row"])
    assert torch.equal(found[..., 6:], x[..., 6:])
    assert not torch.equal(found[..., :6], x[..., :6])


def test_position_zero_changes_nothing():
    x = features(torch.float32)
    assert torch.equal(Rotary(DIM).turn(x, torch.zeros(1, TOKENS, dtype=torch.int64)), x)


def test_no_tokens():
    assert Rotary(DIM).turn(features(tokens=0), torch.zeros(1, 0, dtype=torch.int64)).shape == (BATCH, HEADS, 0, DIM)


OPTIONS = st.fixed_dictionaries(
    {
        "base": st.sampled_from([100.0, 10_000.0]),
        "pairs": st.sampled_from(["halves", "interleaved"]),
        "fraction": st.integers(2, DIM // 2).map(lambda pairs: 2 * pairs / DIM),
        "scaling": st.sampled_from([None, Linear(3.0), NTK(3.0), YaRN(3.0, 127), Llama3(original_length=127)]),
    }
)


@given(OPTIONS, st.integers(0, 2**31), st.integers(-5000, 5000))
def test_scores_depend_on_the_distance_alone(options, seed, shift):
    rotary, q, k = Rotary(DIM, **options), features(seed=seed), features(seed=seed + 1)
    places = torch.randint(0, 5000, (BATCH, TOKENS), generator=torch.Generator().manual_seed(seed))
    here, there = (
        rotary.turn(q, places + moved) @ rotary.turn(k, places.flip(1) + moved).transpose(-2, -1)
        for moved in (0, shift)
    )
    torch.testing.assert_close(there, here, atol=1e-9, rtol=0)
    if shift:
        alone = rotary.turn(q, places + shift) @ rotary.turn(k, places.flip(1)).transpose(-2, -1)
        assert (alone - here).abs().max() > 1e-6


@given(OPTIONS, st.integers(0, 2**31), st.integers(-(10**6), 10**6))
def test_lengths_stay(options, seed, start):
    rotary, x = Rotary(DIM, **options), features(seed=seed)
    found = rotary.turn(x, torch.arange(start, start + TOKENS)[None])
    part = (..., slice(0, rotary.turning))
    torch.testing.assert_close(found[part].norm(dim=-1), x[part].norm(dim=-1) * rotary.amplitude)


class TestAsAModule:
    """What models do to their parts."""

    far = torch.arange(100_003, 100_003 + TOKENS)[None]

    @pytest.mark.parametrize("conversions", [["bfloat16"], ["half"], ["bfloat16", "float"]], ids=str)
    def test_frequencies_survive_conversion(self, conversions):
        rotary, x = Rotary(DIM), features(torch.float32)
        before = rotary.turn(x, self.far)
        model = nn.Sequential(rotary)
        for conversion in conversions:
            model = getattr(model, conversion)()
        assert torch.equal(model[0].turn(x, self.far), before)

    def test_float64_features_have_float64_angles_in_any_model(self):
        rotary, x = Rotary(DIM).bfloat16(), features()
        exact = formula(rotary, x, self.far)
        check(rotary.turn(x, self.far), exact, exact)

    def test_built_without_memory(self):
        with torch.device("meta"):
            rotary = Rotary(DIM)
            assert rotary.turn(torch.empty(BATCH, HEADS, TOKENS, DIM), self.far.to("meta")).is_meta
        x, expected = features(torch.float32), Rotary(DIM).turn(features(torch.float32), self.far)
        assert torch.equal(rotary.turn(x, self.far), expected)
        assert torch.equal(rotary.to_empty(device="cpu").turn(x, self.far), expected)

    def test_copies(self):
        rotary = Rotary(DIM, pairs="interleaved", fraction=10 / DIM, scaling=YaRN(5.0, 127))
        x = features(torch.float32)
        for copied in (copy.deepcopy(rotary), pickle.loads(pickle.dumps(rotary))):
            assert torch.equal(copied.turn(x, self.far), rotary.turn(x, self.far))
            assert repr(copied) == repr(rotary)
        assert not rotary.state_dict()

    def test_repr_says_what_was_asked_for(self):
        rotary = Rotary(DIM, fraction=10 / DIM, scaling=Linear(2.0))
        for words in ("26, base=10000.0, pairs='halves'", "fraction=0.38", "scaling=Linear(factor=2.0)"):
            assert words in repr(rotary)

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize("pairs", ["halves", "interleaved"])
    def test_compiled(self, pairs):
        rotary = Rotary(DIM, pairs=pairs, fraction=10 / DIM, scaling=YaRN(5.0, 127))
        compiled = torch.compile(rotary.turn, fullgraph=True, backend="aot_eager")
        for tokens in (TOKENS, 11):
            x = features(torch.bfloat16, tokens=tokens)
            places = torch.arange(tokens)[None]
            assert torch.equal(compiled(x, places), rotary.turn(x, places))

    @pytest.mark.usefixtures("as_users_run")
    @pytest.mark.parametrize("strict", [False, True])
    def test_exported(self, strict):
        class Turn(nn.Module):
            def __init__(self):
                super().__init__()
                self.rotary = Rotary(DIM, scaling=YaRN(5.0, 127))

            def forward(self, x, places):
                return self.rotary.turn(x, places)

        tokens, model = Dim("tokens", min=2, max=1000), Turn()
        given = (features(torch.float32), PLACES["one row"])
        program = torch.export.export(
            model, given, strict=strict, dynamic_shapes={"x": {2: tokens}, "places": {1: tokens}}
        )
        x, places = features(torch.float32, tokens=13), torch.arange(13)[None]
        torch.testing.assert_close(program.module()(x, places), model(x, places))


@pytest.mark.usefixtures("as_users_run")
class TestRefusals:
    """Sizes and names of which no rotary embedding can be made."""

    @pytest.mark.parametrize(
        ("arguments", "error", "words"),
        [
            ({"head_dim": 1}, ValueError, "head_dim=1 is too small, expected a whole number of at least 2"),
            ({"head_dim": 64.0}, TypeError, "head_dim=64.0 is a float, expected a whole number"),
            ({"head_dim": 7}, ValueError, "7 of head_dim=7 features would turn, expected an even number.*fraction=6/7"),
            ({"fraction": 0.4, "head_dim": 64}, ValueError, "25.6 of head_dim=64 .*try fraction=24/64 or 26/64"),
            ({"fraction": 0.01}, ValueError, "expected an even number: pairs turn; try fraction=2/26"),
            ({"fraction": 0.0}, ValueError, "fraction is 0.0, expected a share of the features, above 0 and at most 1"),
            ({"fraction": 1.5}, ValueError, "fraction is 1.5, expected a share"),
            ({"fraction": "half"}, TypeError, "fraction is a str, expected a number"),
            ({"base": 1.0}, ValueError, "base is 1.0, expected a number above 1"),
            ({"base": float("nan")}, ValueError, "base is nan, expected a number above 1"),
            ({"base": None}, TypeError, "base is None, expected a number"),
            ({"pairs": "half"}, ValueError, "pairs is 'half', expected 'halves' or 'interleaved'"),
            ({"scaling": 4.0}, TypeError, "scaling is a float, expected one of Linear, NTK, YaRN and Llama3, or None"),
        ],
    )
    def test_construction(self, arguments, error, words):
        with pytest.raises(error, match=words):
            Rotary(**({"head_dim": DIM} | arguments))

    def test_a_share_is_not_refused_for_its_rounding(self):
        assert Rotary(100, fraction=0.58).turning == 58
        assert Rotary(80, fraction=0.4).turning == 32

    def test_another_layer(self):
        Rotary(64).check(3, 64)
        with pytest.raises(ValueError, match=r"heads of 64 features, but the layer's have 80: make it Rotary\(80\)"):
            Rotary(64).check(3, 80)

    @pytest.mark.parametrize("shape", [(BATCH, HEADS, TOKENS, DIM + 2), (HEADS, TOKENS, DIM)])
    def test_features_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=r"x has shape .*, expected \(batch, heads, tokens, 26\)"):
            Rotary(DIM, fraction=6 / DIM).turn(torch.zeros(shape), PLACES["one row"])

    def test_positions_of_other_tokens(self):
        with pytest.raises(ValueError, match=r"positions have shape \(1, 1\), expected \(2, 7\), or \(1, 7\)"):
            Rotary(DIM).turn(features(), torch.zeros(1, 1, dtype=torch.int64))
        with pytest.raises(TypeError, match=r"positions have dtype torch.float32"):
            Rotary(DIM).turn(features(), torch.zeros(1, TOKENS))
