"""The lens sees our own attention whichever way it is asked: alone, with weights, with statistics."""

import torch
from torch import nn

import multihead as mh
from multihead.torch_compat import MultiheadAttention


class Inspecting(nn.Module):
    """A model that looks at its own attention while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 36)

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (9, 4)).transpose(1, 2).chunk(3, 1)
        output, found = mh.inspect(q, k, v, mask=mh.masks.causal())
        return output.transpose(1, 2).flatten(2), found.entropy


def test_attention_that_answers_with_weights():
    module = MultiheadAttention(12, 3, batch_first=True).eval()
    x = torch.randn(2, 5, 12)
    plain = module(x, x, x)
    with mh.observe(module) as seen:
        observed = module(x, x, x)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(observed, plain, strict=True))
    assert seen.check().passed
    assert len(seen.layers) == 1
    for average in (True, False):
        with torch.no_grad(), mh.observe(module, statistics=mh.Statistics(rows=tuple(range(5)))) as seen:
            output, weights = module(x, x, x, average_attn_weights=average)
        assert torch.allclose(output, plain[0], atol=1e-6)
        assert seen.check().passed
        rows = seen.layers[0].statistics.rows
        assert torch.allclose(rows.mean(1) if average else rows, weights, atol=1e-6)


def test_attention_that_answers_with_statistics():
    model, x = Inspecting().eval(), torch.randn(2, 5, 12)
    with torch.no_grad():
        plain = model(x)
        with mh.observe(model) as seen:
            observed = model(x)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(observed, plain, strict=True))
    assert seen.check().passed
    assert torch.allclose(seen.layers[0].statistics.entropy, plain[1])
