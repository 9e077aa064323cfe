"""``observe``: see the attention of a model that someone else wrote, while it runs."""

import contextlib
import datetime
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from multihead.conventions import checked_count
from multihead.core import Statistics
from multihead.core.statistics import check_statistics
from multihead.errors import ObservationError
from multihead.lens.adapters import huggingface
from multihead.lens.costs import Budget
from multihead.lens.patching import watching
from multihead.lens.seen import Seen
from multihead.lens.selection import HeadChoice, LayerChoice, Selection
from multihead.lens.watch import Look, Run, Watch
from multihead.version import __version__


def observe(
    model: nn.Module,
    *,
    layers: LayerChoice | Sequence[LayerChoice] | None = None,
    heads: HeadChoice | None = None,
    queries: Sequence[int] | None = None,
    statistics: Statistics = Statistics(),  # noqa: B008
    qk: bool = True,
    verify: bool = True,
    unsupported: Literal["raise", "skip"] = "raise",
    max_bytes: int | None = None,
) -> contextlib.AbstractContextManager[Seen]:
    """See what every head of a model attends to, while the model runs as it always does.

    Inside the ``with`` block, whatever this thread lets the model (or a part of it) compute is seen: attention of
    multihead's own layers, of anything that calls ``F.scaled_dot_product_attention`` or (uncompiled)
    ``flex_attention``, of ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` on all their paths, and of
    transformers models with ``attn_implementation`` "sdpa", "eager", "flex_attention", or "multihead" after
    :func:`register_transformers`. Attention that cannot be seen (flash_attn, compiled functions, modules that multiply
    their weights themselves) is refused by name. The model's output stays the same, bit for bit, and nothing stays
    patched.

    Args:
        model: any module.
        layers: which attentions: numbers in the order in which they first appear, or patterns of module paths
            (``"encoder.layer.2"``, ``"*.self_attn"``); None: all.
        heads: which heads, for every layer; or ``{layer: heads}``, which then also chooses the layers; None: all.
        queries: which query positions; None: all. Time and memory fall with layers, heads and queries.
        statistics: what to measure of each.
        qk: whether to keep queries and keys, from which any weight can be computed later.
        verify: whether to compare Σ P v with the host's own output, for :meth:`Seen.check`.
        unsupported: ``"raise"``: an attention that cannot be observed stops the model with an error that names it;
            ``"skip"``: it is left out with a warning.
        max_bytes: the most that the observation may take; None: half of what is free. A layer that would not fit is
            refused before it is measured; :func:`multihead.estimate` says beforehand what a text will take.

    Returns:
        A context manager that gives the :class:`Seen`.

    Raises:
        ObservationError: the model cannot be observed: compiled, scripted, without numbers (meta device), observed
            already, or computing its attention where it cannot be seen. The message says what to do.
            From inside the model's forward: what is to be kept does not fit in ``max_bytes``.
        UnsupportedAttentionError: from inside the model's forward: one attention of it cannot be observed.
        ValueError: layers, heads or queries that the model does not have; from its forward, where only that can tell.
            Also where nothing is chosen, or heads are chosen of layers that are not.
        TypeError: arguments of other kinds; the message says what to write.

    Memory: the statistics, q and k of what is observed, and one tile of scores at a time; never a Lq × Lk tensor.

    >>> import torch, multihead as mh
    >>> from multihead.lens import observe
    >>> model = torch.nn.TransformerEncoderLayer(12, 3, batch_first=True).eval()
    >>> with observe(model, heads=[1]) as seen:
    ...     y = model(torch.ones(2, 5, 12))
    >>> seen.layers
    (Layer 0 (self_attn): 1 of 3 heads, 5 queries × 5 keys,)
    >>> seen.check().passed
    True
    """
    if unsupported not in ("raise", "skip"):
        raise ValueError(f'unsupported={unsupported!r} is neither "raise" nor "skip".')
    if not isinstance(model, nn.Module):
        raise TypeError(f"observe takes a torch.nn.Module, got a {type(model).__name__}.")
    check_statistics(statistics)
    refuse_unobservable(model)
    selection = Selection(layers, heads, queries)
    if max_bytes is not None:
        checked_count("max_bytes", max_bytes)
    look = Budget(max_bytes).look
    return _observing(model, selection, statistics, qk=qk, verify=verify, skip=unsupported == "skip", look=look)


@contextlib.contextmanager
def _observing(
    model: nn.Module, selection: Selection, statistics: Statistics, *, look: Look, **how: bool
) -> Iterator[Seen]:
    seen = Seen(type(model).__name__, provenance_of(model) | selection.words(), statistics)

    def finished(run: Run) -> bool:
        return seen._add(run.sights, run.calls)

    watch = Watch(model, selection, statistics=statistics, **how, finished=finished, look=look)
    for sentence in huggingface.other_implementations(model):
        watch.unsupported(sentence)
    try:
        with watching(model, watch):
            yield seen
    finally:
        watch.closed = True
        seen._elsewhere = watch.elsewhere
    if watch.layers:
        selection.check(watch.layers)


def refuse_unobservable(model: nn.Module) -> None:
    """Raise ``ObservationError`` for a model whose forwards cannot be followed."""
    for name, module in model.named_modules():
        part = f"{type(model).__name__} cannot be observed: " + (f"its part {name!r} is " if name else "it is ")
        original = f"model.{name}._orig_mod" if name else "model._orig_mod"
        if isinstance(module, torch.jit.ScriptModule):
            raise ObservationError(f"{part}TorchScript, which runs without Python. Observe the original module.")
        if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
            raise ObservationError(f"{part}compiled. Observe the original module, {original}.")
        if module._compiled_call_impl is not None:
            raise ObservationError(f"{part}compiled in place by .compile(). Observe it before it is compiled.")
        if isinstance(module, nn.DataParallel):
            raise ObservationError(f"{part}replicated by DataParallel. Observe the original module, .module.")
        offloaded = hasattr(module, "_hf_hook")
        if not offloaded and any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            raise ObservationError(f"{part}on the meta device, where nothing is computed. Load its weights first.")


def provenance_of(model: nn.Module) -> dict[str, str]:
    """Where a recording comes from, as text."""
    config = getattr(model, "config", None)
    path = getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    parameter = next((tensor for tensor in model.parameters()), None)
    found = {
        "model": type(model).__name__,
        "name_or_path": path if isinstance(path, str) else None,
        "dtype": None if parameter is None else str(parameter.dtype).removeprefix("torch."),
        "device": None if parameter is None else str(parameter.device),
        "multihead": __version__,
        "torch": torch.__version__,
        "transformers": getattr(sys.modules.get("transformers"), "__version__", None),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {name: str(value) for name, value in found.items() if value}
