"""Frequencies and attention factors against those of Hugging Face."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from multihead.positions import NTK, Linear, Llama3, Rotary, YaRN
from multihead.positions.frequencies import geometric_frequencies
from tests.accuracy import check

HEAD_DIM, LENGTH = 64, 1021


def theirs(kind: str, head_dim: int = HEAD_DIM, base: float = 10_000.0, seq_len: int | None = None, **parameters):
    """Frequencies and attention factor of a Llama with these rope parameters."""
    config = LlamaConfig(
        hidden_size=3 * head_dim,
        num_attention_heads=3,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": kind, "rope_theta": base, **parameters},
    )
    if kind == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)


SCALINGS = {
    "linear": (Linear(3.0), {"kind": "linear", "factor": 3.0}),
    "yarn": (
        YaRN(5.0, original_length=LENGTH),
        {"kind": "yarn", "factor": 5.0, "original_max_position_embeddings": LENGTH},
    ),
    "yarn, other betas": (
        YaRN(7.0, LENGTH, beta_fast=11.0, beta_slow=2.0),
        {
            "kind": "yarn",
            "factor": 7.0,
            "original_max_position_embeddings": LENGTH,
            "beta_fast": 11.0,
            "beta_slow": 2.0,
        },
    ),
    "yarn, attention factor": (
        YaRN(5.0, LENGTH, attention_factor=1.3),
        {"kind": "yarn", "factor": 5.0, "original_max_position_embeddings": LENGTH, "attention_factor": 1.3},
    ),
    "yarn, mscale": (
        YaRN(40.0, LENGTH, mscale=0.707, mscale_all_dim=1.3),
        {
            "kind": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": LENGTH,
            "mscale": 0.707,
            "mscale_all_dim": 1.3,
        },
    ),
    "yarn, not truncated": (
        YaRN(5.0, LENGTH, truncate=False),
        {"kind": "yarn", "factor": 5.0, "original_max_position_embeddings": LENGTH, "truncate": False},
    ),
    "yarn, the ramp a point": (
        YaRN(5.0, 5),
        {"kind": "yarn", "factor": 5.0, "original_max_position_embeddings": 5},
    ),
    "yarn, the ramp from the first pair": (
        YaRN(5.0, 53),
        {"kind": "yarn", "factor": 5.0, "original_max_position_embeddings": 53},
    ),
    "yarn, the ramp beyond the last pair": (
        YaRN(5.0, 100_003, beta_fast=5003.0),
        {"kind": "yarn", "factor": 5.0, "original_max_position_embeddings": 100_003, "beta_fast": 5003.0},
    ),
    "llama3": (
        Llama3(),
        {
            "kind": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    "llama3, other numbers": (
        Llama3(32.0, low_frequency=2.0, high_frequency=7.0, original_length=LENGTH),
        {
            "kind": "llama3",
            "factor": 32.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 7.0,
            "original_max_position_embeddings": LENGTH,
        },
    ),
}


@pytest.mark.parametrize("fraction", [1.0, 0.75])
@pytest.mark.parametrize("base", [100.0, 10_000.0, 500_000.0])
@pytest.mark.parametrize(("scaling", "parameters"), SCALINGS.values(), ids=SCALINGS)
def test_frequencies_and_attention_factor_are_theirs(scaling, parameters, base, fraction):
    their_frequencies, their_factor = theirs(base=base, partial_rotary_factor=fraction, **parameters)
    rotary = Rotary(HEAD_DIM, base=base, fraction=fraction, scaling=scaling)
    # theirs are differences of float32 numbers
    torch.testing.assert_close(torch.tensor(rotary.frequencies), their_frequencies, rtol=1e-5, atol=0)
    assert rotary.amplitude == pytest.approx(their_factor, rel=1e-12)


def test_every_scaling_differs_from_every_other():
    """So that the comparison above could tell them apart."""
    seen = [
        (*scaling.frequencies(HEAD_DIM, 10_000.0), scaling.amplitude)
        for scaling in (Linear(1.0), *dict(SCALINGS.values()))
    ]
    for number, one in enumerate(seen):
        for other in seen[:number]:
            assert max(abs(a - b) / b for a, b in zip(one, other, strict=True)) > 1e-3


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_unscaled_frequencies_are_theirs(base):
    their_frequencies, their_factor = theirs("default", base=base)
    rotary = Rotary(HEAD_DIM, base=base)
    torch.testing.assert_close(torch.tensor(rotary.frequencies), their_frequencies, rtol=1e-6, atol=0)
    assert rotary.amplitude == their_factor == 1.0


@pytest.mark.parametrize("length", [LENGTH, 4099])
def test_ntk_is_their_dynamic_one_at_that_length(length):
    factor = 3.0
    found, _ = theirs("dynamic", factor=factor, seq_len=length)
    mine = NTK(factor * length / LENGTH - (factor - 1)).frequencies(HEAD_DIM, 10_000.0)
    torch.testing.assert_close(torch.tensor(mine), found, rtol=1e-6, atol=0)


def test_ntk_slows_the_last_pair_by_its_factor_and_the_first_not():
    plain, scaled = geometric_frequencies(26, 10_000.0), NTK(5.0).frequencies(26, 10_000.0)
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(plain[-1] / 5, rel=1e-12)


@pytest.mark.parametrize("scaling", [Linear(1.0), NTK(1.0), YaRN(1.0, LENGTH), Llama3(1.0)], ids=repr)
def test_factor_one_changes_nothing(scaling):
    assert scaling.frequencies(26, 100.0) == pytest.approx(geometric_frequencies(26, 100.0), rel=1e-14)
    assert scaling.amplitude == 1.0


def test_double_precision_from_the_start():
    exact = torch.tensor(10_000.0, dtype=torch.float64) ** (-torch.arange(0, 26, 2, dtype=torch.float64) / 26)
    check(torch.tensor(geometric_frequencies(26, 10_000.0), dtype=torch.float64), exact, exact)


@pytest.mark.usefixtures("as_users_run")
class TestRefusals:
    """Numbers that no scaling can have."""

    @pytest.mark.parametrize("make", [Linear, NTK, Llama3, lambda factor: YaRN(factor, LENGTH)])
    @pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf")])
    def test_a_factor_below_one(self, make, factor):
        with pytest.raises(ValueError, match=r"factor is .*, expected a number of at least 1: it says how many times"):
            make(factor)

    @pytest.mark.parametrize("make", [Linear, NTK, Llama3, lambda factor: YaRN(factor, LENGTH)])
    @pytest.mark.parametrize("factor", ["4", None, True])
    def test_a_factor_that_is_no_number(self, make, factor):
        with pytest.raises(TypeError, match=r"factor is .*, expected a number"):
            make(factor)

    @pytest.mark.parametrize("make", [lambda length: YaRN(4.0, length), lambda length: Llama3(original_length=length)])
    def test_no_length(self, make):
        with pytest.raises(ValueError, match="original_length=0 is too small"):
            make(0)
        with pytest.raises(TypeError, match=r"original_length=8192.0 is a float, expected a whole number"):
            make(8192.0)

    @pytest.mark.parametrize("name", ["beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"])
    def test_yarn_without_a_positive_number(self, name):
        with pytest.raises(ValueError, match=f"{name} is 0, expected a positive number: leave it out"):
            YaRN(4.0, LENGTH, **{name: 0})

    def test_ends_in_the_wrong_order(self):
        with pytest.raises(ValueError, match=r"beta_slow is 32.0, expected less than beta_fast=1.0: swap them\?"):
            YaRN(4.0, LENGTH, beta_fast=1.0, beta_slow=32.0)
        with pytest.raises(
            ValueError, match=r"low_frequency is 4.0, expected less than high_frequency=1.0: swap them\?"
        ):
            Llama3(low_frequency=4.0, high_frequency=1.0)
        with pytest.raises(ValueError, match=r"low_frequency is -1.0, expected a positive number"):
            Llama3(low_frequency=-1.0)

    @pytest.mark.parametrize("name", ["mscale", "mscale_all_dim"])
    def test_half_a_quotient(self, name):
        with pytest.raises(ValueError, match="two parts of one quotient: give both or neither"):
            YaRN(4.0, LENGTH, **{name: 1.0})

    def test_too_few_features_for_ntk(self):
        with pytest.raises(
            ValueError, match="number of features that turn is 2, expected at least 4: NTK keeps the first"
        ):
            Rotary(2, scaling=NTK(2.0))
