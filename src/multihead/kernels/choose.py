"""Which kernel computes a call: the first, in order of speed, that does not refuse it."""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from multihead.core import AttentionCall, as_autocast, autocasts, nonfinite
from multihead.errors import NoKernelError
from multihead.kernels import chunked, dense, packed, sdpa, steps
from multihead.kernels.tracing import traced

KERNELS: tuple[ModuleType, ...] = (steps, packed, sdpa, chunked)
"""Every kernel that computes numbers, fastest first. A kernel is a module with NAME, refuses(call) and attend(call)."""

TRACEABLE: tuple[ModuleType, ...] = (sdpa, dense)
"""Those that torch can follow instead, when it compiles, exports, traces or transforms what calls them."""


def choose(call: AttentionCall) -> ModuleType:
    """The kernel for a call.

    Raises:
        NoKernelError: each kernel refuses; the message holds their reasons.
    """
    kernels = TRACEABLE if traced(call) else KERNELS
    for kernel in kernels:
        if kernel.refuses(call) is None:
            return kernel
    reasons = "; ".join(f"{kernel.NAME}: {kernel.refuses(call)}" for kernel in kernels)
    raise NoKernelError(f"no kernel computes this attention: {reasons}.")


def explain(call: AttentionCall) -> dict[str, str]:
    """For each kernel: ``"runs"``, ``"could run"`` or the reason why it refuses this call.

    >>> import torch
    >>> q = torch.zeros(1, 2, 3, 4)
    >>> reasons = explain(AttentionCall(q, q, q, softcap=30.0))
    >>> reasons["sdpa"], reasons["chunked"]
    ('refuses: it has no softcap', 'runs')
    """
    chosen, follows = choose(call), traced(call)
    found = {}
    for kernel in (*KERNELS, dense):
        if kernel not in (TRACEABLE if follows else KERNELS):
            reason = "torch cannot trace it" if follows else "it is for what torch traces, and forms all weights"
        else:
            reason = kernel.refuses(call)
        found[kernel.NAME] = f"refuses: {reason}" if reason else "runs" if kernel is chosen else "could run"
    return found


def attend(call: AttentionCall) -> Tensor:
    """The output of a call by the chosen kernel, (B, H, Lq, Dv).

    Obeys torch's function protocol, so a ``TorchFunctionMode`` sees every attention of this library here, as one call.
    """
    tensors = (call.q, call.k, call.v)
    if has_torch_function(tensors):
        return handle_torch_function(attend, tensors, call)
    if autocasts(call.q.device):
        # what a kernel computes must not depend on which of its operations autocast knows
        q, k, v = as_autocast(*tensors)
        with torch.autocast(call.q.device.type, enabled=False):
            return attend(replace(call, q=q, k=k, v=v))
    output = choose(call).attend(call)
    if call.mask is None or call.learns or traced(call) or not nonfinite(output):
        return output
    # a hidden NaN may have reached it; with a gradient, the kernels that could let it through have refused already
    return chunked.attend(call)
