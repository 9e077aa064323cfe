"""Models of transformers: which function computes their attention, and who understands it.

Two things of transformers are replaced while someone observes, because what reaches torch is no longer what the model
meant: keys and values are repeated for grouped queries, or the query is packed into fewer heads, and eager attention is
only matrix products. One is the "sdpa" entry in its table of attention functions; the other is the method
``AttentionInterface.get_interface``, with which a model asks for its function and so says which one is "eager". The
implementation's name stays what it is, so the model makes the same masks.
"""

import functools
import sys
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from torch import nn

from multihead.errors import UnsupportedAttentionError
from multihead.lens.adapters import interface

NAME = "multihead"
"""The name of our own attention in transformers' tables."""

_STOCK = "transformers.integrations.sdpa_attention"
_FLEX = "transformers.integrations.flex_attention"

_REGISTER = f'call multihead.lens.register_transformers() and model.set_attn_implementation("{NAME}")'


def interface_class() -> Any:
    """The class of transformers' tables of attention functions; None where its models are not loaded."""
    return getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)


def table() -> MutableMapping[str, Any] | None:
    """The attention functions of transformers by name; None where its models are not loaded."""
    return getattr(interface_class(), "_global_mapping", None)


def other_implementations(model: nn.Module) -> Iterator[str]:
    """A sentence for each model of transformers, here or inside, that computes attention where it cannot be seen."""
    modeling = sys.modules.get("transformers.modeling_utils")
    base = getattr(modeling, "PreTrainedModel", None)
    if base is None:
        return
    models = {name: module for name, module in model.named_modules() if isinstance(module, base)}
    told = set()
    for name, module in model.named_modules():
        around = [outer for outer in models if not outer or name == outer or name.startswith(f"{outer}.")]
        # a backbone without attention may say "eager" as it likes
        if not around or "Attention" not in type(module).__name__:
            continue
        nearest = max(around, key=len)
        config = getattr(module, "config", models[nearest].config)
        owner = min((outer for outer in around if models[outer].config is config), key=len, default=nearest)
        chosen = getattr(config, "_attn_implementation", None)
        if owner not in told and not _visible(module, chosen):
            told.add(owner)
            yield _advice(owner, models[owner], chosen, asks=_asks(module))


def _visible(module: nn.Module, chosen: str | None) -> bool:
    if chosen in (None, "sdpa", NAME):
        return True
    if "flash" in chosen or chosen.startswith("paged|"):
        return False
    return _asks(module) or any(isinstance(part, nn.MultiheadAttention) for part in module.modules())


def _asks(module: nn.Module) -> bool:
    """Whether a module, or one inside it, asks transformers for its attention function."""
    return any(_asking(type(part)) for part in module.modules())


@functools.cache
def _asking(kind: type) -> bool:
    codes = [getattr(method, "__code__", None) for base in kind.__mro__ for method in _unwrapped(vars(base).values())]
    return any("get_interface" in code.co_names for code in codes if code is not None)


def _unwrapped(methods: Any) -> Iterator[Any]:
    for method in methods:
        yield method
        while (method := getattr(method, "__wrapped__", None)) is not None:
            yield method


def _advice(name: str, model: nn.Module, chosen: str | None, *, asks: bool) -> str:
    part = f"{type(model).__name__} ({name})" if name else type(model).__name__
    what = f'{part} uses attn_implementation="{chosen}", which the lens cannot see'
    if getattr(model, "_supports_sdpa", False):
        then = f', or call model.set_attn_implementation("sdpa"), or {_REGISTER}' if asks else ""
        return f'{what}: load it with attn_implementation="sdpa"{then}.'
    if asks:
        return f'{what}: call model.set_attn_implementation("eager"), or {_REGISTER}.'
    return (
        f"{part} has no sdpa attention in transformers, only {chosen!r}, which the lens cannot see, "
        "because the model multiplies its weights in code of its own."
    )


def attention(run: Any, original: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """``sdpa_attention_forward``, seen; a foreign function under its name is left to what it calls itself."""
    if original.__module__ != _STOCK:
        return original(module, *args, **kwargs)
    with run.unseen():
        answer = original(module, *args, **kwargs)
    given = interface.bound(original, args, kwargs)
    run.see(run.name_of(module), lambda finder: interface.sdpa(module, given, answer[0], finder))
    return answer


def offered(current: Callable[[], Any], chosen: str | None, function: Any, default: Any) -> Any:
    """The function that a model asked for while it is observed, seen where it is called."""
    if chosen in ("sdpa", NAME):
        # the table's own entry sees the first, and torch's function protocol the second
        return function
    if function is default:
        current().asked = current().stack[-1]

    @functools.wraps(function)
    def seen(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = current()
        if run is None:
            return function(module, *args, **kwargs)
        if function is default:
            run.asked = None
            return _eager(run, function, module, args, kwargs)
        if function.__module__ == _FLEX:
            return _flex(run, function, module, args, kwargs)
        return _other(run, chosen, function, module, args, kwargs)

    return seen


def bypassed(run: Any, name: str) -> None:
    """Take note of an attention that a model asked for and then computed in its own code."""

    def refused(_: object) -> Any:
        raise UnsupportedAttentionError(
            "it multiplies its weights in code of its own instead of the eager attention function of transformers: "
            f'call model.set_attn_implementation("sdpa"), or {_REGISTER}'
        )

    run.see(name, refused)


def _eager(run: Any, function: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    with run.unseen():
        answer = function(module, *args, **kwargs)
    given = interface.bound(function, args, kwargs)
    run.see(run.name_of(module), lambda finder: interface.eager(module, function, given, answer[0], finder))
    return answer


def _flex(run: Any, function: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    with run.unseen():
        answer = function(module, *args, **kwargs)
    given = interface.bound(function, args, kwargs)
    run.see(run.name_of(module), lambda finder: interface.flexible(module, given, answer[0], finder))
    return answer


def _other(run: Any, chosen: str | None, function: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """A function that someone else registered: it is seen by what it calls, and refused where nothing it calls is."""
    before = run.calls
    answer = function(module, *args, **kwargs)

    def refused(_: object) -> Any:
        raise UnsupportedAttentionError(
            f'the function of attn_implementation="{chosen}" calls no attention that the lens knows: {_REGISTER}'
        )

    if run.calls == before:
        run.see(run.name_of(module), refused)
    return answer
