"""Top-k and top-p against their definitions, and what is drawn against what should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multihead.models import Beam, Greedy, Sample


def by_definition(logits, temperature, top_k, top_p):
    """The probability of each token, by the words of the papers, one token after the other."""
    scaled = logits.double() / temperature
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token].item())
    kept = order if top_k is None else order[:top_k]
    weights = torch.zeros_like(scaled)
    weights[kept] = torch.softmax(scaled[kept], 0)
    if top_p is not None:
        nucleus, mass = [], 0.0
        for token in kept:
            nucleus.append(token)
            mass += weights[token].item()
            if mass >= top_p:
                break
        cut = torch.zeros_like(weights)
        cut[nucleus] = weights[nucleus] / weights[nucleus].sum()
        weights = cut
    return weights


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 20),
    top_p=st.none() | st.floats(0.05, 1.0),
)
def test_candidates_are_those_of_the_definition(seed, temperature, top_k, top_p):
    logits = 3 * torch.randn(2, 17, generator=torch.Generator().manual_seed(seed))
    tokens, probabilities = Sample(temperature=temperature, top_k=top_k, top_p=top_p).candidates(logits)
    found = torch.zeros(2, 17).scatter(-1, tokens, probabilities)
    for row in range(2):
        expected = by_definition(logits[row], temperature, top_k, top_p)
        nearly = top_p is not None and _rounding_decides(logits[row], temperature, top_k, top_p)
        if not nearly:
            torch.testing.assert_close(found[row].double(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(-1), torch.ones(2))


def _rounding_decides(logits, temperature, top_k, top_p):
    """Whether some sum of probabilities comes so near to top_p that float32 may see it on the other side."""
    weights = by_definition(logits, temperature, top_k, None).sort(descending=True).values
    return bool(((weights.cumsum(0) - top_p).abs() < 1e-5).any())


def test_the_nucleus_of_the_paper():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for top_p, size in ((0.4, 1), (0.5, 1), (0.6, 2), (0.85, 3), (1.0, 4), (1e-9, 1), (1e-50, 1)):
        _, probabilities = Sample(top_p=top_p).candidates(logits)
        assert (probabilities > 0).sum() == size, top_p


def test_equal_logits_keep_as_many_as_asked():
    _, probabilities = Sample(top_k=3).candidates(torch.zeros(1, 7))
    assert probabilities.tolist() == [[pytest.approx(1 / 3)] * 3]


def test_probabilities_of_half_precision_are_those_of_full():
    logits = torch.randn(2, 17).bfloat16()
    for choice in (Sample(temperature=0.7), Sample(temperature=0.7, top_k=5, top_p=0.9)):
        for found, expected in zip(choice.candidates(logits), choice.candidates(logits.float()), strict=True):
            assert torch.equal(found, expected)


def test_tokens_that_may_not_be_drawn_never_are():
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(1000, 4)
    for choice in (Sample(), Sample(top_p=0.99), Sample(top_k=3), Greedy()):
        assert set(choice.choose(logits).tolist()) <= {1, 2}


def test_tokens_are_drawn_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().expand(20_000, 4)
    drawn = Sample().choose(logits, torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=4) / 20_000
    # five standard deviations of the largest
    assert (found - probabilities).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_the_first_of_equal_tokens_is_the_greedy_one():
    assert Greedy().choose(torch.tensor([[0.0, 1.0, 1.0]])).tolist() == [1]


def test_a_beam_is_the_papers():
    """Vaswani et al. 2017, section 6.1."""
    assert Beam() == Beam(4, 0.6)


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Sample(temperature=0), ValueError, r"temperature is 0, expected a positive number: Greedy\(\)"),
        (lambda: Sample(temperature=float("nan")), ValueError, "temperature is nan, expected a positive number"),
        (lambda: Sample(temperature=float("inf")), ValueError, "temperature is inf, expected a positive number"),
        (lambda: Sample(temperature="hot"), TypeError, "temperature is a str, expected a number"),
        (lambda: Sample(top_k=0), ValueError, "top_k=0 is too small"),
        (lambda: Sample(top_k=2.5), TypeError, "top_k=2.5 is a float, expected a whole number"),
        (lambda: Sample(top_p=0.0), ValueError, "top_p is 0.0, expected above 0 and at most 1"),
        (lambda: Sample(top_p=1.5), ValueError, "top_p is 1.5, expected above 0 and at most 1"),
        (lambda: Beam(0), ValueError, "width=0 is too small"),
        (lambda: Beam(2, -1.0), ValueError, "length_penalty is -1.0, expected 0 or more"),
        (lambda: Beam(2, float("inf")), ValueError, "length_penalty is inf, expected 0 or more"),
        (lambda: Beam(2, "long"), TypeError, "length_penalty is a str, expected a number"),
    ],
)
def test_refuses_with_a_sentence(make, error, message):
    with pytest.raises(error, match=message):
        make()
