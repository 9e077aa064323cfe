"""Which kernel computes a call: the first, in order of speed, that does not refuse it."""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from multihead.core import AttentionCall, Measurements, Statistics, as_autocast, autocasts, nonfinite
from multihead.errors import NoKernelError
from multihead.kernels import chunked, cpu, dense, packed, sdpa, steps
from multihead.kernels.tracing import traced

KERNELS: tuple[ModuleType, ...] = (steps, packed, sdpa, cpu, chunked)
"""Every kernel that computes numbers, fastest first. A kernel is a module with NAME, refuses(call) and attend(call)."""

TRACEABLE: tuple[ModuleType, ...] = (sdpa, dense)
"""Those that torch can follow instead, when it compiles, exports, traces or transforms what calls them."""

MEASURING: tuple[ModuleType, ...] = (cpu, chunked)
"""Those that answer with statistics, fastest first: modules that also have ``measure``, as :func:`measure` says."""


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
    ('refuses: it has no softcap', 'could run')
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
        with torch.autocast(call.q.device.type, enabled=False):
            return attend(_as_autocast(call))
    output = choose(call).attend(call)
    if call.mask is None or call.learns or traced(call) or not nonfinite(output):
        return output
    # a hidden NaN may have reached it; with a gradient, the kernels that could let it through have refused already
    return chunked.attend(call)


def attend_with_weights(call: AttentionCall, *, mean: bool) -> tuple[Tensor, Tensor]:
    """The output of a call, (B, H, Lq, Dv), and its weights before dropout, from one pass where a kernel can.

    Obeys torch's function protocol, as :func:`attend` does.

    Args:
        call: the attention.
        mean: whether the weights are averaged over heads, (B, Lq, Lk), rather than (B, H, Lq, Lk).

    Memory: the weights that are returned; those of every head where a gradient is wanted of them.
    """
    tensors = (call.q, call.k, call.v)
    if has_torch_function(tensors):
        return handle_torch_function(attend_with_weights, tensors, call, mean=mean)
    if autocasts(call.q.device):
        with torch.autocast(call.q.device.type, enabled=False):
            return attend_with_weights(_as_autocast(call), mean=mean)
    if not traced(call) and cpu.refuses(call) is None:
        found = cpu.attend_with_weights(call, mean=mean)
        if found is not None:
            return found
    return attend(call), (dense.mean_weights if mean else dense.weights)(call)


def attend_with_statistics(call: AttentionCall, statistics: Statistics) -> tuple[Tensor, Measurements]:
    """The output of a call, (B, H, Lq, Dv), and its statistics, from one pass where a kernel can.

    Obeys torch's function protocol, as :func:`attend` does. The output is differentiable, the statistics are not.
    """
    tensors = (call.q, call.k, call.v)
    if has_torch_function(tensors):
        return handle_torch_function(attend_with_statistics, tensors, call, statistics)
    # what plain torch computes in tiles is no better an output than that of the fastest kernel
    if call.learns or call.dropout or traced(call) or _measuring(call) is chunked:
        return attend(call), measure(call, statistics)[1]
    output, found = measure(call, statistics, output=True)
    assert output is not None  # noqa: S101  it was asked for
    return output.to(call.q.dtype), found


def measure(
    call: AttentionCall, statistics: Statistics, *, queries: Tensor | None = None, output: bool = False
) -> tuple[Tensor | None, Measurements]:
    """The statistics of a call, and Σ P v if asked for, in the statistics' dtype; for all queries or some of them.

    Args:
        call: the attention; its dropout plays no part.
        statistics: what to compute.
        queries: (r,) indices of the queries to measure; None: all. ``rows`` must be among them; ``received`` and
            ``offsets`` then count these queries only, and ``blocks`` and ``block_peaks`` count them off in their order.
        output: whether to return Σ P v of the measured queries, (B, H, r, Dv).

    Raises:
        ValueError: rows or columns that are not there, or are not measured.

    Memory: the answers, and tiles of scores; never a Lq × Lk tensor.
    """
    call = replace(call, dropout=0.0) if call.dropout else call
    with torch.no_grad():
        return _measuring(call).measure(call, statistics, queries=queries, output=output)


def explain_measuring(call: AttentionCall) -> dict[str, str]:
    """As :func:`explain`, for :func:`measure`."""
    with torch.no_grad():
        call = replace(call, dropout=0.0) if call.dropout else call
        reasons = {kernel.NAME: kernel.refuses(call) for kernel in MEASURING}
        chosen = _measuring(call).NAME
    return {
        name: f"refuses: {reason}" if reason else "runs" if name == chosen else "could run"
        for name, reason in reasons.items()
    }


def _measuring(call: AttentionCall) -> ModuleType:
    return next(kernel for kernel in MEASURING if kernel.refuses(call) is None)


def _as_autocast(call: AttentionCall) -> AttentionCall:
    """What a kernel computes must not depend on which of its operations autocast knows."""
    q, k, v = as_autocast(call.q, call.k, call.v)
    return replace(call, q=q, k=k, v=v)
