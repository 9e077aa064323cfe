"""Softmax in parts equals softmax at once."""

import torch

from multihead.core import SoftmaxState, merge_outputs, reference
from multihead.core.call import AttentionCall
from tests.accuracy import check, random_call


def scores_with_holes():
    scores = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)) * 3
    scores[0, 1, :7] = -torch.inf
    scores[2, 4] = -torch.inf
    return scores


def test_state_equals_log_sum_exp_and_entropy():
    scores = scores_with_holes()
    state = SoftmaxState.of(scores)
    exact = scores.double()
    weights = exact.softmax(-1).nan_to_num(0.0)
    check(state.lse, torch.logsumexp(exact, -1), torch.logsumexp(scores, -1), "lse")
    entropy = torch.special.entr(weights).sum(-1)
    check(state.entropy, entropy, torch.special.entr(scores.softmax(-1).nan_to_num(0.0)).sum(-1), "entropy")
    assert torch.equal(state.peak, scores.amax(-1))


def test_any_split_in_any_order_gives_the_same():
    scores = scores_with_holes()
    whole = SoftmaxState.of(scores)
    for cuts in ((7,), (1, 2), (0, 3, 10), (5, 5)):
        states = [SoftmaxState.of(part) for part in scores.tensor_split(cuts, -1)]
        merged = states[-1]
        for state in states[:-1]:
            merged = merged.merge(state)
        torch.testing.assert_close(merged.lse, whole.lse)
        torch.testing.assert_close(merged.entropy, whole.entropy, atol=1e-6, rtol=1e-5)


def test_outputs_over_parts_of_the_keys_merge_to_the_whole():
    call = random_call(torch.float64)
    parts = [
        AttentionCall(call.q, call.k[:, :, keys], call.v[:, :, keys])
        for keys in (slice(0, 4), slice(4, 5), slice(5, 11))
    ]
    found = [reference(part) for part in parts]
    lses = [torch.logsumexp(part.scores, -1) for part in found]
    output, lse = merge_outputs([part.output for part in found], lses)
    torch.testing.assert_close(output, reference(call).output)
    torch.testing.assert_close(lse, torch.logsumexp(reference(call).scores, -1))


def test_merging_nothing_with_nothing_is_nothing():
    nothing = SoftmaxState.of(torch.full((2, 3), -torch.inf))
    merged = nothing.merge(SoftmaxState.of(torch.zeros(2, 0)))
    assert torch.equal(merged.lse, torch.full((2,), -torch.inf))
    assert torch.equal(merged.entropy, torch.zeros(2))
    output, lse = merge_outputs([torch.zeros(2, 5)] * 2, [merged.lse] * 2)
    assert torch.equal(output, torch.zeros(2, 5))
    assert torch.equal(lse, merged.lse)
