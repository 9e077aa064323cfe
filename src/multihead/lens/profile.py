"""``profile``: what the heads of a model do over a whole data set, in memory that does not grow with it."""

import contextlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from multihead.conventions import in_words
from multihead.core import Statistics
from multihead.errors import ObservationError, RecordingError
from multihead.files import place_of
from multihead.lens import batches
from multihead.lens.adapters import huggingface
from multihead.lens.gathering import gathered
from multihead.lens.host import HostAttention
from multihead.lens.masks_found import MaskFinder
from multihead.lens.measuring import Wanted
from multihead.lens.observe import provenance_of, refuse_unobservable
from multihead.lens.patching import watching
from multihead.lens.profiles import LayerProfile, Profile
from multihead.lens.real_tokens import RealTokens
from multihead.lens.selection import HeadChoice, LayerChoice, Selection
from multihead.lens.summaries import KINDS
from multihead.lens.watch import Run, Watch

SAVE_EVERY = 60.0
"""Seconds between two savings of a profile that is being made."""

STATISTICS = tuple(name for name in KINDS if name != "lse")


def profile(
    model: nn.Module,
    dataloader: Iterable[Any],
    *,
    into: str | os.PathLike[str] | None = None,
    layers: LayerChoice | Sequence[LayerChoice] | None = None,
    heads: HeadChoice | None = None,
    statistics: Sequence[str] = STATISTICS,
    unsupported: Literal["raise", "skip"] = "raise",
) -> Profile:
    r"""What every head of a model does over a data set: mean, variance, extremes and histogram of each statistic.

    With P the weights of one head over one text, i its real queries (n of them that see something), j its keys, and
    :math:`r_j = \sum_i P_{ij}`:

    ====================  ====================================================================================
    of each query
    ``entropy``           :math:`-\sum_j P_{ij} \log P_{ij}`, nats; a learned sink counts as one key more
    ``max_weight``        :math:`\max_j P_{ij} = e^{max\_score - lse}`
    ``first``             :math:`P_{ij}` of the text's first real key: the attention sink of Xiao et al. 2023
    ``sink``              probability that went to a learned sink; of layers that have one
    ``lse``               :math:`\log \sum_j e^{s_{ij}}`; where asked for
    of each text
    ``distance``          :math:`\sum_{ij} P_{ij} |p_i - j| / \sum_{ij} P_{ij}`, tokens, with p the query's position
                          among the keys; of layers that attend to their own text
    ``received_max``      :math:`\max_j r_j / \sum_j r_j`: what the most attended key gets of all attention
    ``received_entropy``  :math:`-\sum_j \hat r_j \log \hat r_j`, nats, :math:`\hat r = r / \sum_j r_j`
    ====================  ====================================================================================

    Each row of a batch is one text. Padding is in no number: of a text for which the batch has a mask of tokens
    (``attention_mask``, ``decoder_attention_mask``, torch's ``*_key_padding_mask``, multihead's ``valid``), what it
    says; else, where a layer attends to its own text, the keys that its mask hides as padding. A query that sees no key
    is not counted either. Documents packed into one row are one text.

    The model is run in evaluation mode, without gradients, and left as it was.

    Args:
        model: any module that :func:`multihead.observe` can observe.
        dataloader: gives batches: dicts of keyword arguments, tensors, or tuples of positional arguments. Their tensors
            are moved to the model's device.
        into: a file that keeps the profile: saved every minute, at the end, and at Ctrl-C or any error, with what is
            whole. If it is there already, its batches are read and not run, and it goes on with the next.
        layers: which, as :func:`multihead.observe` takes them; None: all.
        heads: likewise.
        statistics: names from the table.
        unsupported: ``"raise"`` or ``"skip"``, as :func:`multihead.observe`.

    Returns:
        The profile. Two of one model over two data sets are :meth:`Profile.merged` to the one over both.

    Raises:
        ObservationError: as :func:`multihead.observe`; or ``into`` holds a profile of something else, or of other data.
        RecordingError: ``into`` is no profile, or cannot be written.
        ValueError, TypeError: arguments or batches of other kinds; the message says what to write.

    Memory: the profile, O(layers · heads), and of one attention at a time the statistics of its queries and one tile.

    >>> import torch, multihead as mh
    >>> model = torch.nn.TransformerEncoderLayer(12, 3, batch_first=True)
    >>> profile = mh.profile(model, [torch.zeros(2, 5, 12), torch.zeros(1, 7, 12)])
    >>> profile
    Profile(TransformerEncoderLayer: 3 texts in 2 batches, 1 layers)
    >>> profile.layers[0].queries, profile.layers[0].statistics["max_weight"].maximum
    (tensor([17, 17, 17]), tensor([0.2000, 0.2000, 0.2000], dtype=torch.float64))
    """
    if unsupported not in ("raise", "skip"):
        raise ValueError(f'unsupported={unsupported!r} is neither "raise" nor "skip".')
    if not isinstance(model, nn.Module):
        raise TypeError(f"profile takes a torch.nn.Module, got a {type(model).__name__}.")
    batches.check_iterable(dataloader)
    wanted = _checked(statistics)
    refuse_unobservable(model)
    profiling = _Profiling(model, Selection(layers, heads), wanted, skip=unsupported == "skip")
    kept = _Kept(None if into is None else Path(into), profiling)
    try:
        with profiling.watching(), evaluating(model), _progress(batches.length_of(dataloader)) as advance:
            for number, batch in enumerate(dataloader):
                profiling.take(batch, number, skipped=number < kept.batches)
                if number + 1 == kept.batches:
                    kept.check()
                kept.save(after=SAVE_EVERY)
                advance()
            kept.check()
    finally:
        # whatever it was that came, what is whole stays
        kept.save()
    return profiling.profile


def _checked(statistics: object) -> tuple[str, ...]:
    """Names of statistics, in the order of the table."""
    if isinstance(statistics, str | Statistics) or not isinstance(statistics, Iterable):
        raise TypeError(f"statistics={statistics!r} is no list of names: choose from {in_words(KINDS)}.")
    names = list(statistics)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(
            f"statistics {in_words(map(repr, unknown))} cannot be profiled: choose from {in_words(KINDS)}."
        )
    if not names:
        raise ValueError(f"statistics=[] asks for nothing: choose from {in_words(KINDS)}.")
    return tuple(name for name in KINDS if name in names)


class _Profiling:
    """A profile that is being made."""

    def __init__(self, model: nn.Module, selection: Selection, wanted: tuple[str, ...], *, skip: bool) -> None:
        self.model, self.wanted = model, wanted
        provenance = provenance_of(model) | selection.words()
        self.none = Profile(
            model=type(model).__name__,
            fingerprint=batches.fingerprint(model),
            statistics=wanted,
            provenance=provenance,
        )
        self.profile = self.none
        self.skipped, self.skipped_inputs = 0, 0
        self.device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        self._real = RealTokens()
        self._found: dict[int, LayerProfile] = {}
        self._texts = 0
        self._calls = 0
        self._watch = Watch(
            model,
            selection,
            statistics=Statistics(),
            qk=False,
            verify=False,
            skip=skip,
            finished=self._finished,
            look=self._look,
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """The model is watched inside."""
        for sentence in huggingface.other_implementations(self.model):
            self._watch.unsupported(sentence)
        try:
            with watching(self.model, self._watch):
                yield
        finally:
            self._watch.closed = True
        if self._watch.layers:
            self._watch.selection.check(self._watch.layers)

    def take(self, batch: object, number: int, *, skipped: bool) -> None:
        """Run the model on a batch and take in what was seen, all of it or nothing; or pass over the batch."""
        args, kwargs = batches.arguments(self.model, batch, number)
        inputs = batches.checksum(args, kwargs)
        if skipped:
            self.skipped += 1
            self.skipped_inputs = zlib.crc32(inputs.to_bytes(4, "little"), self.skipped_inputs)
            return
        args, kwargs = batches.moved(args, self.device), batches.moved(kwargs, self.device)
        self._real = RealTokens.of(self.model, args, kwargs)
        self._found, self._texts, calls = {}, 0, self._calls
        with torch.no_grad():
            self.model(*args, **kwargs)
        if self._calls == calls:
            raise ObservationError(
                f"nothing was seen of {type(self.model).__name__} in batch {number}: it computed no attention that can "
                "be observed; multihead.observe says more."
            )
        found = tuple(self._found[index] for index in sorted(self._found))
        of_batch = replace(self.none, layers=found, texts=self._texts, batches=1, inputs=inputs)
        self.profile = self.profile.merged(of_batch)

    def _look(self, attention: HostAttention, wanted: Wanted, finder: MaskFinder) -> None:  # noqa: ARG002
        self._texts = self._texts or attention.call.sizes.batch
        found = gathered(attention, wanted.name, wanted.heads, self.wanted, self._real)
        layer = LayerProfile(
            index=wanted.index,
            name=wanted.name,
            host=attention.host,
            heads=wanted.heads,
            queries=found.queries,
            offsets=found.offsets,
            statistics=found.summaries,
        )
        self._found[wanted.index] = self._found[wanted.index].merged(layer) if wanted.index in self._found else layer

    def _finished(self, run: Run) -> bool:
        self._calls += run.calls
        return True


class _Kept:
    """The file of a profile that is being made."""

    def __init__(self, path: Path | None, profiling: _Profiling) -> None:
        self.path, self.profiling = path, profiling
        self.saved = time.monotonic()
        self.inputs = 0
        """Of the batches that are in the file already, ``batches`` of them."""
        self.batches = 0
        if path is None:
            return
        try:
            folder = place_of(path).parent
        except OSError as error:
            raise RecordingError(str(error)) from error
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise RecordingError(f"cannot write {path}: there is no folder {folder} to write in.")
        if path.exists():
            self._go_on(path)

    def _go_on(self, path: Path) -> None:
        before, now = Profile.load(path), self.profiling.none
        for what in ("model", "fingerprint", "statistics"):
            if getattr(before, what) != getattr(now, what):
                what_differs = "weights" if what == "fingerprint" else what
                raise ObservationError(f"{path} holds a profile of other {what_differs}: name another file.")
        for what in ("layers", "heads"):
            if before.provenance.get(what) != now.provenance.get(what):
                raise ObservationError(
                    f"{path} holds a profile of {what} {before.provenance.get(what, 'all')}, not of "
                    f"{now.provenance.get(what, 'all')}: name another file, or the same {what}."
                )
        self.profiling.profile = before
        self.batches, self.inputs = before.batches, before.inputs

    def check(self) -> None:
        """Raise ``ObservationError`` unless the batches that were passed over are those that are in the file."""
        profiling, there = self.profiling, self.batches
        if profiling.skipped < there:
            raise ObservationError(
                f"{self.path} holds a profile of {there} batches, and dataloader gives only {profiling.skipped}: give "
                "the same data in the same order, or name another file."
            )
        if profiling.skipped_inputs != self.inputs:
            raise ObservationError(
                f"{self.path} holds a profile of {there} batches, and the first {there} of dataloader are others: give "
                "the same data in the same order, or name another file."
            )

    def save(self, *, after: float = 0.0) -> None:
        """Save what there is, if there is anything new and the last time is ``after`` seconds ago."""
        fresh = self.profiling.profile.batches > self.batches
        if self.path is None or not fresh or time.monotonic() - self.saved < after:
            return
        self.profiling.profile.save(self.path)
        self.saved = time.monotonic()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards each of its modules as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("batches", total=total)
        yield lambda: progress.advance(task)
