"""Putting the watch in place, and taking every bit of it away again.

Three kinds of things are replaced while someone observes: the ``forward`` of each module of the model, on the instance;
two things of transformers, the "sdpa" entry of its table of attention functions and the method by which models ask that
table; and, only where a model has its own subclass of a module with a fast path, that module's class-level ``forward``.
The last two are shared by all observers and counted, and pass straight through for whoever is not observing. A copy or
a pickle made meanwhile is that of an unobserved module: beside ``forward``, ``__getstate__`` is set on the instance,
which Python asks what there is to copy.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from multihead.errors import ObservationError
from multihead.lens.adapters import huggingface, torch_mha
from multihead.lens.watch import Forward, Watch, current_run, running, switched

_lock = threading.RLock()
_observed: dict[int, nn.Module] = {}
"""Every module that is being observed, by anyone: its id, and itself, so that the id stays its own."""


class Shared:
    """Something global that is replaced as long as anyone needs it."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], wrap: Callable[[Any], Any]) -> None:
        self.read, self.write, self.wrap = read, write, wrap
        self.users = 0
        self.original: Any = None
        self.ours: Any = None

    @contextlib.contextmanager
    def replaced(self) -> Iterator[None]:
        """Replace it, or count one more who needs it replaced."""
        with _lock:
            if not self.users:
                self.original = self.read()
                self.ours = self.wrap(self.original)
                self.write(self.ours)
            self.users += 1
        try:
            yield
        finally:
            with _lock:
                self.users -= 1
                if not self.users:
                    # whoever put something else there meanwhile keeps it
                    if self.read() is self.ours:
                        self.write(self.original)
                    self.original = self.ours = None


@contextlib.contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Let ``watch`` see the model.

    Raises:
        ObservationError: a part of the model is being observed already.
    """
    modules = dict(model.named_modules())
    with _registered(model, modules), contextlib.ExitStack() as stack:
        for name, module in modules.items():
            if not name or _may_attend(module):
                stack.enter_context(_forward_replaced(watch, module, name))
        for shared in _needed(modules.values()):
            stack.enter_context(shared.replaced())
        yield


@contextlib.contextmanager
def _registered(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    with _lock:
        for name, module in modules.items():
            if id(module) in _observed:
                part = f"its part {name!r} is" if name else "it is"
                raise ObservationError(
                    f"{type(model).__name__} cannot be observed: {part} being observed already. Leave the other "
                    "observation first, or choose what to see with layers= in a single one."
                )
        _observed.update((id(module), module) for module in modules.values())
    try:
        yield
    finally:
        with _lock:
            for module in modules.values():
                del _observed[id(module)]


def _may_attend(module: nn.Module) -> bool:
    """Whether a module's forward may compute attention: torch's own leaves (Linear, LayerNorm, ...) do not."""
    if type(module).forward is nn.Module.forward:
        return False
    own = type(module).__module__.startswith("torch.nn.modules.")
    return not own or isinstance(module, nn.MultiheadAttention) or next(module.children(), None) is not None


@contextlib.contextmanager
def _forward_replaced(watch: Watch, module: nn.Module, name: str) -> Iterator[None]:
    attributes = vars(module)
    ours: dict[str, Any] = {"forward": Forward(watch, module, name)}
    before = {attribute: attributes[attribute] for attribute in ("forward", "__getstate__") if attribute in attributes}
    ours["__getstate__"] = _CleanState(module, ours, before)
    attributes.update(ours)
    try:
        yield
    finally:
        for attribute, value in ours.items():
            # whoever put something else there meanwhile keeps it; ours, inside it, passes straight through from now on
            if attributes.get(attribute) is not value:
                continue
            if attribute in before:
                attributes[attribute] = before[attribute]
            else:
                del attributes[attribute]


class _CleanState:
    """A module's ``__getstate__`` while it is observed: what there is to copy or to pickle if nobody observed it."""

    def __init__(self, module: nn.Module, ours: dict[str, Any], before: dict[str, Any]) -> None:
        self.module = weakref.ref(module)
        self.original = module.__getstate__
        self.ours, self.before = ours, before

    def __call__(self) -> Any:
        state = self.original()
        if not isinstance(state, dict):
            return state
        replaced = {attribute for attribute, value in self.ours.items() if state.get(attribute) is value}
        kept = {attribute: value for attribute, value in state.items() if attribute not in replaced}
        return kept | {attribute: self.before[attribute] for attribute in replaced & self.before.keys()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A module that copies its attributes itself has a copy with a state of its own."""
        copied = memo.get(id(self.module()))
        return self.original if copied is None else type(copied).__getstate__.__get__(copied)


def _needed(modules: Any) -> list[Shared]:
    """The shared replacements that these modules need."""
    modules = list(modules)
    needed = [_classes[base] for base in torch_mha.HANDLERS if any(torch_mha.overrides(m, base) for m in modules)]
    table = huggingface.table()
    if table is not None:
        with _lock:
            if "table" not in _tables:
                interface = huggingface.interface_class()
                _tables["table"] = Shared(
                    lambda: table.get("sdpa"), lambda value: table.update(sdpa=value), _wrapped_attention
                )
                _tables["method"] = Shared(
                    lambda: interface.get_interface,
                    lambda value: setattr(interface, "get_interface", value),
                    _wrapped_asking,
                )
        needed += _tables.values()
    return needed


def _wrapped_attention(original: Any) -> Any:
    """The sdpa attention of transformers, seen."""

    @functools.wraps(original)
    def sdpa_attention_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = current_run(module)
        if run is None:
            return original(module, *args, **kwargs)
        return huggingface.attention(run, original, module, args, kwargs)

    return sdpa_attention_forward


def _wrapped_asking(original: Any) -> Any:
    """How a model of transformers asks for its attention function: it gets one that is seen."""

    @functools.wraps(original)
    def get_interface(self: Any, attn_implementation: str | None, default: Any) -> Any:
        function = original(self, attn_implementation, default)
        if running() is None:
            return function
        return huggingface.offered(running, attn_implementation, function, default)

    return get_interface


def _wrapped_forward(base: type[nn.Module]) -> Callable[[Any], Any]:
    """A class-level forward, seen when a subclass's own forward calls it."""

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            run = current_run(self)
            if run is None or id(self) in run.handled:
                return original(self, *args, **kwargs)
            with switched(on=False):
                return torch_mha.HANDLERS[base](run, self, functools.partial(original, self), args, kwargs)

        return forward

    return wrap


def _class_forward(base: type[nn.Module]) -> Shared:
    return Shared(lambda: base.forward, lambda value: setattr(base, "forward", value), _wrapped_forward(base))


_classes = {base: _class_forward(base) for base in torch_mha.HANDLERS}
_tables: dict[str, Shared] = {}
