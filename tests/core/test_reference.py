"""The formula against itself written once more, in scalar Python."""

import math

import pytest
import torch

from multihead import masks
from multihead.core import AttentionCall, reference
from tests.accuracy import OPTIONS, mask_examples, random_call


def by_hand(call: AttentionCall, batch: int, head: int, query: int) -> tuple[list[float], list[float]]:
    """Weights and output of one query, one number at a time."""
    sizes, kv = call.sizes, head // (call.q.shape[1] // call.k.shape[1])
    visible = (
        None if call.mask is None else call.mask.dense(sizes.queries, sizes.keys, batch=sizes.batch, heads=sizes.heads)
    )
    exponentials = []
    for key in range(sizes.keys):
        score = sum(
            a * b for a, b in zip(call.q[batch, head, query].tolist(), call.k[batch, kv, key].tolist(), strict=True)
        )
        score *= 1 / math.sqrt(call.q.shape[-1]) if call.scale is None else call.scale
        if call.softcap is not None:
            score = call.softcap * math.tanh(score / call.softcap)
        if call.bias is not None:
            score += call.bias.expand(sizes.batch, sizes.heads, sizes.queries, sizes.keys)[
                batch, head, query, key
            ].item()
        if visible is not None:
            seen = visible if visible.ndim == 2 else visible[batch % visible.shape[0], head % visible.shape[1]]
            if not seen[query, key]:
                exponentials.append(0.0)
                continue
        exponentials.append(math.exp(score))
    total = sum(exponentials) + (0.0 if call.sinks is None else math.exp(call.sinks[head].item()))
    weights = [exponential / total if total else 0.0 for exponential in exponentials]
    values = call.v[batch, kv].tolist()
    return weights, [
        sum(w * value[i] for w, value in zip(weights, values, strict=True)) for i in range(call.v.shape[-1])
    ]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("mask", mask_examples().values(), ids=mask_examples())
def test_equals_the_formula_by_hand(mask, options):
    call = random_call(torch.float64, mask=mask, **options)
    found = reference(call)
    for batch, head, query in ((0, 0, 0), (1, 3, 4), (1, 5, 6)):
        weights, output = by_hand(call, batch, head, query)
        torch.testing.assert_close(found.weights[batch, head, query].tolist(), weights, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found.output[batch, head, query].tolist(), output, rtol=1e-12, atol=1e-14)


def test_weights_and_sink_sum_to_one():
    found = reference(random_call(sinks=True))
    torch.testing.assert_close(found.weights.sum(-1) + found.sink, torch.ones_like(found.sink))


def test_hidden_nan_does_not_reach_the_output():
    call = random_call(mask=masks.prefix(5))
    clean = reference(call).output
    call.v[:, :, 7] = torch.nan
    torch.testing.assert_close(reference(call).output, clean)
    call.v[:, :, 3] = torch.nan
    assert reference(call).output.isnan().all()
