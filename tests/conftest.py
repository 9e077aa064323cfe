"""What every test may use."""

import jaxtyping
import pytest
import torch


@pytest.fixture
def as_users_run(monkeypatch):
    """Switch off the shape checks that run under pytest, so that bad input meets the messages that users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def same_numbers():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
