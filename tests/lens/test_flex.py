"""FlexAttention: the model's own functions say which weights there are."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from multihead import masks
from multihead.errors import CheckError, UnsupportedAttentionError
from multihead.lens import observe
from multihead.lens.adapters import flex
from tests.lens.hosts import nothing_patched, observed, whole_rows

SIZES = {"batch": 2, "heads": 6, "queries": 7, "keys": 11, "dim": 5}

DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [0] * 9 + [1] * 2])


@pytest.fixture(autouse=True)
def _slow_is_fine():
    """torch warns that it forms all scores where nobody compiled FlexAttention."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


class Flexible(nn.Module):
    """A module that calls FlexAttention in any way."""

    def __init__(self, function=flex_attention, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, q, k, v):
        return self.function(q, k, v, **self.options)


def tensors(kv_heads=6, **changes):
    sizes = SIZES | changes
    torch.manual_seed(3)
    q = torch.randn(sizes["batch"], sizes["heads"], sizes["queries"], sizes["dim"])
    k, v = (torch.randn(sizes["batch"], kv_heads, sizes["keys"], sizes["dim"]) for _ in range(2))
    return q, k, v


def block_mask(function, batch=None, heads=None, queries=SIZES["queries"], keys=SIZES["keys"]):
    return create_block_mask(function, batch, heads, queries, keys, device="cpu")


def see(q, k, v, **options):
    seen = observed(Flexible(**options), q, k, v, options={"statistics": whole_rows(q.shape[2])})
    assert seen.check().passed
    (layer,) = seen.layers
    assert layer.host == "flex_attention"
    return layer


def formula(q, k, allowed=None, change=lambda scores: scores):
    """The weights, by hand."""
    scores = change(q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-2, -1) * q.shape[-1] ** -0.5)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1)


def close(layer, expected):
    return torch.allclose(layer.statistics.rows, expected, atol=1e-6)


PLACES = torch.arange(SIZES["queries"])[:, None], torch.arange(SIZES["keys"])


def test_nothing_special():
    q, k, v = tensors()
    layer = see(q, k, v)
    assert layer.mask is None
    assert layer.bias is None
    assert close(layer, formula(q, k))


def test_grouped_heads_and_a_scale():
    q, k, v = tensors(kv_heads=2)
    layer = see(q, k, v, enable_gqa=True, scale=0.3)
    assert layer.k.shape[1] == 2
    assert layer.scale == pytest.approx(0.3)
    assert close(layer, formula(q * 0.3 * 5**0.5, k))


def test_masks_are_found():
    q, k, v = tensors(queries=11)
    places = torch.arange(11)[:, None], torch.arange(11)
    mask = block_mask(lambda b, h, i, j: i >= j, queries=11)
    layer = see(q, k, v, block_mask=mask)
    assert layer.mask == masks.causal()
    assert close(layer, formula(q, k, places[0] >= places[1]))
    window = block_mask(lambda b, h, i, j: (i >= j) & (i - j < 3), queries=11)
    assert see(q, k, v, block_mask=window).mask == masks.sliding_window(3)


def test_functions_that_look_at_tensors_sequences_and_heads():
    q, k, v = tensors()
    last = torch.tensor([1, 3, 5, 7, 9, 10])
    mask = block_mask(
        lambda b, h, i, j: (DOCUMENTS[b, i] == DOCUMENTS[b, j]) & (j <= last[h]) | (j == 0), SIZES["batch"], 6
    )
    allowed = DOCUMENTS[:, None, :7, None] == DOCUMENTS[:, None, None, :]
    allowed = allowed & (PLACES[1] <= last[:, None, None]) | (PLACES[1] == 0)
    layer = see(q, k, v, block_mask=mask)
    assert close(layer, formula(q, k, allowed))
    assert not close(layer, formula(q, k, allowed.roll(1, 1))), "the comparison can fail"


def test_scores_that_are_changed():
    q, k, v = tensors(kv_heads=3)
    slopes = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05, 0.02])

    def score_mod(score, b, h, i, j):
        return 0.7 * torch.tanh(score / 0.7) - slopes[h] * (i - j).abs()

    distance = slopes[:, None, None] * (PLACES[0] - PLACES[1]).abs()
    expected = formula(q, k, change=lambda scores: 0.7 * torch.tanh(scores / 0.7) - distance)
    layer = see(q, k, v, score_mod=score_mod, enable_gqa=True)
    assert layer.bias.shape == (2, 6, 7, 11)
    assert close(layer, expected)


def test_scores_that_hide_keys():
    q, k, v = tensors()

    def score_mod(score, b, h, i, j):
        return torch.where(j <= i, score, -torch.inf)

    layer = see(q, k, v, score_mod=score_mod)
    assert close(layer, formula(q, k, PLACES[1] <= PLACES[0]))


def test_blocks_of_queries(monkeypatch):
    """Long masks and scores are asked for in parts."""
    monkeypatch.setattr(flex, "BLOCK", 6 * 2 * 11 * 3)
    test_functions_that_look_at_tensors_sequences_and_heads()
    test_scores_that_are_changed()


def test_a_row_that_sees_nothing():
    q, k, v = tensors()
    layer = see(q, k, v, block_mask=block_mask(lambda b, h, i, j: (i >= j) & (i > 0)))
    assert layer.statistics.rows[:, :, 0].count_nonzero() == 0


def test_auxiliary_output():
    model = Flexible(block_mask=block_mask(lambda b, h, i, j: i >= j), return_aux=AuxRequest(lse=True))
    q, k, v = tensors()
    plain, aux = model(q, k, v)
    with observe(model) as seen:
        output, again = model(q, k, v)
    assert seen.check().passed
    assert torch.equal(output, plain)
    assert torch.equal(again.lse, aux.lse)
    assert torch.allclose(seen.layers[0].statistics.lse, aux.lse, atol=1e-5)


def test_a_misunderstood_mask_would_be_noticed(monkeypatch):
    monkeypatch.setattr(flex, "_found", lambda *args: None)
    model = Flexible(block_mask=block_mask(lambda b, h, i, j: i >= j))
    with observe(model) as seen:
        model(*tensors())
    with pytest.raises(CheckError, match="1 of 1 layers do not agree"):
        seen.check()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_it_is_refused_and_uncompiled_it_is_seen():
    """Fused into a kernel nothing is left to see, in the first run and in those that find it compiled."""
    model = Flexible(torch.compile(flex_attention), block_mask=block_mask(lambda b, h, i, j: i >= j))
    q, k, v = tensors(dim=16)
    with torch.no_grad():
        plain = model(q, k, v)
        for _ in range(2):
            with (
                pytest.raises(
                    UnsupportedAttentionError,
                    match=r"it calls flex_attention inside a function that torch.compile compiled, where.*; run the "
                    r"model inside \"with torch.compiler.set_stance\('force_eager'\):\", which leaves everything unc",
                ),
                observe(model),
            ):
                model(q, k, v)
        with pytest.warns(UserWarning, match="left out"), observe(model, unsupported="skip"):
            assert torch.equal(model(q, k, v), plain)
        with torch.compiler.set_stance("force_eager"), observe(model) as seen:
            model(q, k, v)
    assert seen.check().passed
    assert nothing_patched()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_of_transformers():
    pytest.importorskip("transformers")
    from tests.lens.families import FAMILIES, eager_weights, with_attention
    from tests.lens.hosts import padded

    for name in ("Llama", "Gemma 2", "Mistral", "BERT"):
        family = FAMILIES[name]
        inputs = family.inputs() | {"attention_mask": padded(11, 7)}
        expected = eager_weights(family.make(), inputs)
        model = with_attention(family.make(), "flex_attention")
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seen = observed(model, **inputs, options={"statistics": whole_rows(11)})
        assert seen.check().passed
        for layer in seen.layers:
            assert layer.host == "transformers"
            apart = (layer.statistics.rows - expected[layer.name]).abs()
            assert apart.max() < 1e-5, layer.name
