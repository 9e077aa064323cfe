"""One architecture of each family, seen on every path: the weights are those that the model returns in eager mode."""

import pytest
import torch

pytest.importorskip("transformers")

from multihead import Statistics
from multihead.lens import observe, register_transformers
from tests.lens.families import CASES, FAMILIES, cases, eager_weights, implementations, with_attention
from tests.lens.hosts import observed

BAR = 1e-5


@pytest.fixture(autouse=True)
def registered():
    register_transformers()


def difference(layers, expected, inputs, *, everywhere=False):
    """The largest difference of weights; without ``everywhere`` queries that are padding are left out.

    Eager spreads those evenly over all keys, other implementations let them see nothing.
    """
    largest = 0.0
    for layer in layers:
        ours, theirs = layer.statistics.rows, expected[layer.name]
        assert ours.shape == theirs.shape, layer.name
        apart = (ours - theirs).abs()
        mask = inputs.get("attention_mask")
        if not everywhere and mask is not None and mask.shape[1] == ours.shape[2]:
            apart = apart * mask[:, None, :, None]
        largest = max(largest, apart.max().item())
    return largest


def seen_rows(model, inputs, expected):
    """What is seen of the modules of ``expected``, with every row: in one run for each number of queries."""
    names = {}
    for name, weights in expected.items():
        names.setdefault(weights.shape[2], []).append(name)
    layers = []
    for queries, chosen in names.items():
        statistics = Statistics(rows=tuple(range(queries)))
        seen = observed(model, **inputs, options={"layers": chosen, "statistics": statistics})
        assert seen.check().passed
        layers += seen.layers
    return layers


def every_name(model, inputs):
    """The modules in which attention is seen."""
    with torch.no_grad(), observe(model, heads=[0], queries=[0], qk=False, verify=False) as seen:
        model(**inputs)
    return [layer.name for layer in seen.layers]


@pytest.mark.parametrize(("name", "case"), cases())
def test_weights_are_those_of_eager(name, case):
    family = FAMILIES[name]
    model, inputs = family.make(), CASES[case](family.inputs())
    expected = eager_weights(model, inputs)
    for implementation in implementations(family):
        chosen = with_attention(model, implementation)
        assert sorted(every_name(chosen, inputs)) == sorted(expected), implementation
        layers = seen_rows(chosen, inputs, expected)
        assert {layer.host for layer in layers} == {"multihead" if implementation == "multihead" else "transformers"}
        everywhere = implementation == "eager"
        assert difference(layers, expected, inputs, everywhere=everywhere) < BAR, implementation


def test_packed_documents():
    """Positions that begin again at 0 begin a new document, of which nobody sees another."""
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1]] * 2)
    documents = torch.tensor([0] * 4 + [1] * 5 + [2] * 2)
    for name in ("Llama", "Mistral", "Gemma 2"):
        family = FAMILIES[name]
        model, inputs = family.make(), family.inputs() | {"position_ids": positions, "use_cache": False}
        expected = eager_weights(model, inputs)
        for implementation in implementations(family):
            layers = seen_rows(with_attention(model, implementation), inputs, expected)
            assert difference(layers, expected, inputs) < BAR, (name, implementation)
            across = layers[0].statistics.rows[..., documents[:, None] != documents]
            assert across.count_nonzero() == 0


def test_the_comparison_can_fail():
    family = FAMILIES["Gemma 2"]
    model, inputs = family.make(), family.inputs()
    expected = eager_weights(model, inputs)
    layers = seen_rows(model, inputs, expected)
    assert difference(layers, expected, inputs) < BAR
    assert difference(layers, {name: weights.roll(1, 1) for name, weights in expected.items()}, inputs) > 100 * BAR
    model.config.attn_logit_softcapping = None
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert difference(layers, eager_weights(model, inputs), inputs) > 100 * BAR
