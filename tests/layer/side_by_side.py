"""Two layers that should give the same, and ways in which a projection is more than its weight."""

import copy

import torch
from torch import nn
from torch.nn.utils import prune

from tests.accuracy import check


def noisy(module):
    """The module in eval mode, with parameters none of which is zero or one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3)
    return module.eval()


def compare(ours, theirs, run_ours, run_theirs, *inputs):
    """Both runs in float32 and in float64, where the difference may be as large as float32 makes theirs."""
    wide_ours, wide_theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    wide = [tensor.double() for tensor in inputs]
    with torch.no_grad():
        exact, plain = run_theirs(wide_theirs, *wide), run_theirs(theirs, *inputs)
        check(run_ours(ours, *inputs), exact, plain, "float32")
        found = run_ours(wide_ours, *wide)
    allowed = 2 * (plain - exact).abs().max()
    assert (found - exact).abs().max() <= allowed, f"float64: {(found - exact).abs().max():.3g}, allowed {allowed:.3g}"


class Adapted(nn.Linear):
    """A projection that may compute anything."""


def pruned_in(module, path, name="weight"):
    prune.l1_unstructured(module.get_submodule(path), name, amount=0.5)
    return module
