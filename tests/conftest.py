"""What every test may use."""

import os
from importlib.util import find_spec

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # one process a core: more threads would only wait for each other
    torch.set_num_threads(1)

# a slow machine is no failure; and what lands must not depend on luck, while people may find new examples
settings.register_profile(
    "here",
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("here")

# no test may depend on a network, nor wait for one
os.environ["HF_HUB_OFFLINE"] = "1"

if not torch.cuda.is_available() and find_spec("triton") is not None:
    # Triton decides once, as it is loaded, whether programs can run without a GPU; torch's compiler loads it too
    with pytest.MonkeyPatch.context() as interpreted:
        interpreted.setenv("TRITON_INTERPRET", "1")
        import triton.language  # noqa: F401


@pytest.fixture
def as_users_run(monkeypatch):
    """Switch off the shape checks that run under pytest, so that bad input meets the messages that users see."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def same_numbers():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """A browser on a busy machine may miss one gesture: such a test is run once more, and the report says so."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))
