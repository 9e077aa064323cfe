"""Whether numbers can be looked at: not while torch compiles, exports, traces or transforms what calls a kernel."""

import torch

from multihead.core import AttentionCall, nonfinite


def traced(call: AttentionCall) -> bool:
    """Whether this call is being followed by torch rather than computed: compiled, exported, traced or transformed."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or call.q.is_meta or transformed()


def transformed() -> bool:
    """Whether a transformation of ``torch.func`` or a forward-mode derivative is under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0


def leaks(call: AttentionCall) -> bool:
    """Whether NaN or inf in the inputs could reach queries that may not see them, in the output or in a gradient."""
    return call.mask is not None and any(nonfinite(tensor) for tensor in (call.q, call.k, call.v))


def surely(condition: "bool | torch.SymBool | torch.Tensor") -> bool:
    """Whether something about sizes holds for every length that a trace may later meet."""
    if isinstance(condition, bool):
        return condition
    if isinstance(condition, torch.Tensor):
        # torch.jit.trace: true of this length, and who knows of which other
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
