"""Watching a model run: whose forward is being computed, what attention it asks for, and who sees it.

While a model is observed, each of its modules' ``forward`` is replaced *on the instance* by a :class:`Forward` that
keeps the module's path on a stack; hooks would be simpler, but ``nn.TransformerEncoderLayer`` leaves its fast path, and
so changes its numbers, as soon as one of its modules has a hook. Inside them a ``TorchFunctionMode`` sees the calls of
attention functions. An active mode, whatever it does, also switches off the fast paths of three modules of torch, so
inside these it is taken off the stack (``switched``) and the modules are understood from their arguments.

All of this is per thread: ``_state`` says which run the current thread is in, and who is in none sees nothing.
"""

import contextlib
import functools
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from multihead.core import Statistics
from multihead.errors import UnsupportedAttentionError
from multihead.lens.adapters import functions, huggingface, torch_mha
from multihead.lens.host import HostAttention
from multihead.lens.masks_found import MaskFinder
from multihead.lens.measuring import Sight, Wanted, sight_of
from multihead.lens.selection import Selection

Look = Callable[[HostAttention, Wanted, MaskFinder], Sight | None]
"""What is done with an attention that was chosen; a :class:`Sight` is kept for the run."""


class SkippedAttentionWarning(UserWarning):
    """An attention that cannot be observed was left out, as ``unsupported="skip"`` asks."""


class _State(threading.local):
    """What the current thread is doing."""

    run: "Run | None" = None
    """The run whose module is being computed; None also while something is measured."""
    seeing: bool = False
    """Whether the mode is on the stack."""
    mode: "_Mode | None" = None
    """The mode that is or was last on the stack."""


_state = _State()


def running() -> "Run | None":
    """The run of the current thread."""
    return None if torch.compiler.is_compiling() else _state.run


def current_run(module: nn.Module) -> "Run | None":
    """The run of the current thread, if ``module`` belongs to the model that it is about."""
    run = running()
    return run if run is not None and id(module) in run.watch.names else None


class Run:
    """One outermost forward of an observed model, or of a part of it that was called on its own."""

    def __init__(self, watch: "Watch", number: int) -> None:
        self.watch = watch
        self.number = number
        self.sights: list[Sight] = []
        self.stack: list[Forward] = []
        self.handled: set[int] = set()
        """Modules whose fast path is being accounted for."""
        self.padded: torch.Size | None = None
        """Sizes of what nn.TransformerEncoder turned into a nested tensor."""
        self.calls = 0
        """Attentions that appeared so far, chosen or not."""
        self.asked: Forward | None = None
        """The module that asked transformers for eager attention and has not called it yet."""
        self.normalised: Forward | None = None
        """The module that called a softmax last."""
        self.finder = MaskFinder()
        self._occurrences: Counter[str] = Counter()

    @property
    def name(self) -> str:
        """Path of the module that is being computed; of the layer, where it is the attention inside one of ours."""
        name, module = self.stack[-1].name, self.stack[-1].module()
        ours = type(module).__name__ == "Attend" and type(module).__module__.startswith("multihead.layer")
        return name.rpartition(".")[0] if ours else name

    def name_of(self, module: nn.Module) -> str:
        """Path of a module of the observed model."""
        return self.watch.names.get(id(module), self.name)

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Nothing that happens inside is observed."""
        before, _state.run = _state.run, None
        try:
            yield
        finally:
            _state.run = before

    def see(self, name: str, understand: Callable[[MaskFinder], HostAttention]) -> None:
        """Take note of an attention: number it and, if it is chosen, measure it.

        Raises:
            UnsupportedAttentionError: it cannot be observed, and was not to be skipped.
            ValueError: chosen heads, queries, rows or columns are not there.
        """
        watch = self.watch
        index = watch.number(name, self._occurrences[name])
        self._occurrences[name] += 1
        self.calls += 1
        if not watch.selection.wants(index, name):
            return
        try:
            with self.unseen(), switched(on=False), torch.inference_mode(mode=False), torch.no_grad():
                attention = understand(self.finder)
                with torch.autocast(attention.call.q.device.type, enabled=False):
                    sight = watch.look(attention, self._wanted(index, name, attention), self.finder)
                if sight is not None:
                    self.sights.append(sight)
        except UnsupportedAttentionError as error:
            watch.unsupported(f"layer {index} ({name or 'the model itself'}) cannot be observed: {error}.")
        except ValueError as error:
            raise ValueError(f"layer {index} ({name or 'the model itself'}): {error}") from error

    def _wanted(self, index: int, name: str, attention: HostAttention) -> Wanted:
        watch, sizes = self.watch, attention.call.sizes
        return Wanted(
            index=index,
            name=name,
            run=self.number,
            heads=watch.selection.heads_of(index, name, sizes.heads),
            queries=watch.selection.queries_of(sizes.queries),
            statistics=watch.statistics,
            qk=watch.qk,
            verify=watch.verify,
        )


class Watch:
    """The observation of one model by one thread."""

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        *,
        statistics: Statistics,
        qk: bool,
        verify: bool,
        skip: bool,
        finished: Callable[[Run], bool],
        look: Look = sight_of,
    ) -> None:
        self.selection, self.look = selection, look
        self.statistics, self.qk, self.verify, self.skip = statistics, qk, verify, skip
        self.finished = finished
        self.thread = threading.get_ident()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.layers: list[str] = []
        """Paths of the attentions in order of appearance; a layer's number is its place here."""
        self.started = 0
        self.closed = False
        self.elsewhere = False
        """Whether the model also ran in another thread."""
        self._numbers: dict[tuple[str, int], int] = {}
        self._run: Run | None = None

    def number(self, name: str, occurrence: int) -> int:
        """The number of the attention that appears in this module for the ``occurrence``-th time in a run."""
        key = (name, occurrence)
        if key not in self._numbers:
            self._numbers[key] = len(self.layers)
            self.layers.append(name)
        return self._numbers[key]

    def unsupported(self, sentence: str) -> None:
        """Refuse, or warn and go on, as the user asked.

        Raises:
            UnsupportedAttentionError: unsupported attentions are not to be skipped.
        """
        if not self.skip:
            raise UnsupportedAttentionError(f'{sentence} Pass unsupported="skip" to leave it out.')
        warnings.warn(f"{sentence} It is left out.", SkippedAttentionWarning, stacklevel=2)

    def here(self) -> bool:
        """Whether a forward that starts now is to be observed: in this thread, and not recomputed for a gradient."""
        if self.closed:
            return False
        if threading.get_ident() != self.thread:
            self.elsewhere = True
            return False
        return torch._C._current_graph_task_id() == -1

    def forward(self, at: "Forward", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute a module's forward, and see the attention inside."""
        if self._run is not None:
            return self._inside(self._run, at, args, kwargs)
        run = self._run = Run(self, self.started)
        try:
            output = self._inside(run, at, args, kwargs)
        finally:
            self._run = None
        self.started += self.finished(run)
        if at.name == "":
            self.selection.check(self.layers)
        return output

    def _inside(self, run: Run, at: "Forward", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, _state.run = _state.run, run
        run.stack.append(at)
        calls = run.calls
        try:
            with switched(on=at.handler is None):
                if at.handler is not None:
                    return at.handler(run, at.module(), at.original, args, kwargs)
                output = at.original(*args, **kwargs)
                _account(run, at, calls)
                return output
        finally:
            run.stack.pop()
            _state.run = before


def _account(run: Run, at: "Forward", calls: int) -> None:
    """Refuse an attention of a module that computed its forward, if nobody could see it; ``calls``: those before it."""
    if run.asked is at:
        run.asked = None
        huggingface.bypassed(run, at.name)
    if run.normalised is at:
        run.normalised = None
        if run.calls == calls and functions.attends(at.module()):
            functions.written_out(run, at.name, at.module())
    mode = _state.mode
    if mode is None:
        return
    compiled, mode.compiled = mode.compiled, None
    softmax, mode.compiled_softmax = mode.compiled_softmax, False
    if compiled is None and softmax and functions.attends(at.module()):
        compiled = "a softmax"
    if compiled is not None and run.calls == calls:
        functions.inside_compiled(run, at.name, compiled)


class Forward:
    """A module's ``forward`` while it is observed."""

    def __init__(self, watch: Watch, module: nn.Module, name: str) -> None:
        self.watch = watch
        self.module = weakref.ref(module)
        self.name = name
        self.original = module.forward
        self.handler = torch_mha.handler_of(module)
        functools.update_wrapper(self, self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the forward, watched if it is the watch's to see."""
        if torch.compiler.is_compiling() or not self.watch.here():
            return self.original(*args, **kwargs)
        return self.watch.forward(self, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied module computes with its own parameters, unobserved."""
        copied = memo.get(id(self.module()))
        function = getattr(self.original, "__func__", None)
        return self.original if copied is None or function is None else function.__get__(copied)


class _Mode(TorchFunctionMode):
    """Sees the calls of attention functions, and lets everything else pass."""

    compiled: str | None = None
    """An attention inside compiled code that ran. Only the compiler reads the line that sets it, and what it compiles
    sets it again whenever it runs."""
    compiled_softmax = False
    """Likewise, whether compiled code called a softmax."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            if func is functions.SDPA:
                self.compiled = "torch.nn.functional.scaled_dot_product_attention"
            elif func is functions.FLEX:
                self.compiled = "flex_attention"
            elif func is functions.MHA:
                self.compiled = "torch.nn.functional.multi_head_attention_forward"
            elif func is F.softmax or func is torch.softmax or func is torch.Tensor.softmax:
                self.compiled_softmax = True
            return func(*args, **kwargs)
        run = _state.run
        adapter = None if run is None else functions.adapter_of(func)
        if adapter is None:
            if run is not None and func in functions.SOFTMAX:
                run.normalised = run.stack[-1]
            return func(*args, **kwargs)
        return adapter(run, func, args, kwargs)


@contextlib.contextmanager
def switched(*, on: bool) -> Iterator[None]:
    """The mode on the stack, or off it: below a mode of the user's it stays, as fast paths are off there anyway."""
    if on == _state.seeing:
        yield
        return
    mode = _Mode() if on else torch.overrides._get_current_function_mode()
    if not isinstance(mode, _Mode):
        yield
        return
    _state.mode = mode
    first, then = (mode.__enter__, mode.__exit__) if on else (mode.__exit__, mode.__enter__)
    _flip(first, entering=on)
    _state.seeing = on
    try:
        yield
    finally:
        _flip(then, entering=not on)
        _state.seeing = not on


def _flip(step: Callable[..., object], *, entering: bool) -> None:
    step() if entering else step(None, None, None)
