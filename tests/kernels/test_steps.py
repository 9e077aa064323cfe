"""A few queries against many keys, and which kernel is asked for them."""

import pytest
import torch

from multihead import masks
from multihead.core import reference
from multihead.kernels import attend, choose, steps
from tests.accuracy import OPTIONS, check, plain, random_bool, random_call


@pytest.fixture(autouse=True)
def few_keys_are_many(monkeypatch):
    monkeypatch.setattr(steps, "KEYS", 1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_the_formula(options, queries, dtype):
    for mask in (None, masks.causal(), masks.padding(random_bool(2, 11)), masks.prefix(0)):
        call = random_call(dtype, queries=queries, mask=mask, **options)
        assert choose(call) is steps
        check(attend(call), reference(call).output, plain(call).output)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_a_hidden_nan_is_noticed_in_the_output(poison):
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[:, 4] = False
    call = random_call(queries=1, mask=masks.padding(valid))
    clean = attend(call)
    for tensor in (call.k, call.v):
        tensor[:, :, 4] = poison
    assert choose(call) is steps
    assert not steps.attend(call).isfinite().all()
    torch.testing.assert_close(attend(call), clean)


def test_what_it_leaves_to_others(monkeypatch):
    assert "at most 4 queries" in steps.refuses(random_call(queries=5))
    assert "inference" in steps.refuses(random_call(queries=1, requires_grad=True))
    assert "inference" in steps.refuses(random_call(queries=1, dropout=0.5))
    assert "float32 and float64" in steps.refuses(random_call(torch.bfloat16, queries=1))
    monkeypatch.setattr(steps, "KEYS", 2 * 3 * 11 * 5 + 1)
    assert "many keys" in steps.refuses(random_call(queries=1))
