"""Changing torch's module for ours inside a model that exists already."""

from torch import nn

from multihead.conventions import kind_of
from multihead.torch_compat.attention import MultiheadAttention
from multihead.torch_compat.names import TORCHS_NAMES

_CALL_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def replace(model: nn.Module) -> nn.Module:
    """Put a :class:`MultiheadAttention` in the place of every ``torch.nn.MultiheadAttention`` of a model.

    The model is changed in place; its parameters stay the same objects, so an optimizer goes on, and so does its
    ``state_dict``. Device, dtype, training mode, ``requires_grad``, hooks on calls and plain attributes stay. A module
    that stands in several places is one module afterwards, too. ``nn.TransformerEncoder`` no longer turns padded input
    into nested tensors, and ``nn.TransformerEncoderLayer`` no longer computes itself in one operator: hooks fire in
    evaluation as in training, and every position of the output is computed.

    Args:
        model: any model; if it is itself a ``torch.nn.MultiheadAttention``, only the result is new.

    Returns:
        The model, or what has come in its place.

    Raises:
        ValueError: the model has no ``torch.nn.MultiheadAttention``, or one that may be more than torch's own: a
            subclass, a changed ``forward``, pruned or parametrized parameters, hooks on its ``state_dict``. Nothing
            is changed then; the message names each and says why.
        TypeError: ``model`` is no module.

    >>> import torch
    >>> from multihead import torch_compat
    >>> layer = torch.nn.TransformerEncoderLayer(d_model=12, nhead=4, batch_first=True).eval()
    >>> x = torch.rand(2, 7, 12)
    >>> before = layer(x)
    >>> bool(torch.allclose(torch_compat.replace(layer)(x), before, atol=1e-6))
    True
    >>> type(layer.self_attn).__module__
    'multihead.torch_compat.attention'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {kind_of(model)}, expected a torch.nn.Module.")
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    if not found:
        already = sum(isinstance(module, MultiheadAttention) for module in model.modules())
        more = f"; {already} of multihead's own stand there already" if already else ""
        raise ValueError(f"{type(model).__name__} has no torch.nn.MultiheadAttention to replace{more}.")
    reasons = {name or "the model itself": _reason(name, module) for name, module in found.items()}
    refused = [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]
    if refused:
        raise ValueError(
            f"nothing was replaced, because of {'; '.join(refused)}. Undo that, or replace in the parts without it."
        )
    new = {id(module): _replacement(module) for module in found.values()}
    if id(model) in new:
        return new[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in new:
                setattr(parent, name, new[id(child)])
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder) and _holds_ours(encoder):
            encoder.use_nested_tensor = False
    return model


def _holds_ours(module: nn.Module) -> bool:
    return any(isinstance(part, MultiheadAttention) for part in module.modules())


def _reason(name: str, module: nn.MultiheadAttention) -> str | None:
    """Why the module of this name cannot be replaced; None if it is torch's own and nothing else."""
    if name.rpartition(".")[2] == "base_layer":
        return "an adapter stands around it and reaches into it: merge or unload the adapter first"
    if type(module) is not nn.MultiheadAttention:
        return f"it is of type {type(module).__name__}, whose forward and parameters may be its own"
    if "forward" in vars(module):
        return "its forward was replaced by someone else"
    added = {*module._parameters, *module._buffers, *module._modules} - {*TORCHS_NAMES, "out_proj"}
    if added:
        return f"it holds {', '.join(sorted(added))}, which torch's own has not"
    if any(vars(module)[name] for name in _STATE_HOOKS):
        return "it has hooks on its state_dict"
    if not 0.0 <= module.dropout < 1.0:
        return f"its dropout={module.dropout} is no probability below 1"
    return None


def _replacement(old: nn.MultiheadAttention) -> MultiheadAttention:
    new = MultiheadAttention(
        old.embed_dim,
        old.num_heads,
        dropout=old.dropout,
        bias=old.in_proj_bias is not None,
        add_bias_kv=old.bias_k is not None,
        add_zero_attn=old.add_zero_attn,
        kdim=old.kdim,
        vdim=old.vdim,
        batch_first=old.batch_first,
        device="meta",
    ).train(old.training)
    for name in TORCHS_NAMES:
        parameter = getattr(old, name)
        if parameter is not None:
            setattr(new, name, parameter)
    new.add_module("out_proj", _as_linear(old.out_proj))
    for name in _CALL_HOOKS:
        # the same dictionaries, so that the handles that people hold still remove what they registered
        vars(new)[name] = vars(old)[name]
    vars(new).update((name, value) for name, value in vars(old).items() if not hasattr(new, name))
    return new


def _as_linear(module: nn.Module) -> nn.Module:
    """The output projection as a plain linear layer, if it is torch's own that hides from quantisers."""
    if type(module) is not nn.modules.linear.NonDynamicallyQuantizableLinear:
        return module
    linear = nn.Linear.__new__(nn.Linear)
    vars(linear).update(vars(module))
    # the same parameters and hooks; but what is assigned to one later is not the other's
    linear._parameters = dict(module._parameters)
    return linear
