"""What was seen does not change when the caller's mask tensors do."""

import pytest
import torch

import multihead as mh

IDS = torch.tensor([0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("make", "tensor"),
    [
        (mh.masks.padding, torch.arange(7).expand(2, 7) < 3),
        (mh.masks.documents, IDS),
        (lambda given: mh.masks.causal() & mh.masks.dense(given), torch.ones(7, 7, dtype=torch.bool).tril(1)),
        (lambda given: ~mh.masks.padding(given) | mh.masks.prefix(1), torch.arange(7).expand(2, 7) > 3),
    ],
    ids=["padding", "documents", "dense in a tree", "not"],
)
def test_a_mask_reused_by_its_owner(make, tensor):
    tensor = tensor.clone()
    layer = mh.MultiHeadAttention(15, 3)
    with mh.observe(layer) as seen, torch.no_grad():
        layer(torch.randn(2, 7, 15), mask=make(tensor))
    recording = seen.recording()
    before = recording.rows(0, range(7))
    tensor.copy_(~tensor if tensor.dtype == torch.bool else 1 - tensor)
    assert torch.equal(recording.rows(0, range(7)), before)
    torch.testing.assert_close(before.sum(-1), torch.ones(3, 7))
