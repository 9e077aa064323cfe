"""Reading a recording's file: the header when it is opened, a tensor when it is asked for."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multihead.core import Measurements
from multihead.masks import Mask
from multihead.recording.checked import CheckedFile
from multihead.recording.given import LARGEST_WEIGHT
from multihead.recording.layer import Layer
from multihead.recording.mapped import MappedFile
from multihead.recording.schema import Header, LayerHeader
from multihead.recording.shapes import STATISTICS
from multihead.recording.stored_masks import MaskReader


def check_masks(header: Header) -> None:
    """Raise ``ValueError`` where a mask is none, or does not fit the layer that has it; reads no tensor."""
    masks = MaskReader(header.masks, header.tensors)
    masks.check()
    for layer in header.layers:
        if layer.mask is not None:
            masks.mask(layer.mask).check(layer.layer.sizes)


def nonfinite_of(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Which of q and k hold NaN or inf, as they may where no query sees it.

    Raises:
        ValueError: the log-sum-exp holds NaN or +inf, which it cannot: -inf stands where a query sees nothing. Or
            weights are none.
    """
    lse, weights = tensors.get("statistics.lse"), tensors.get("weights")
    if lse is not None:
        check_lse(lse)
    if weights is not None:
        check_weights(weights)
    return tuple(name for name in ("q", "k") if name in tensors and not finite(tensors[name]))


def check_lse(lse: Tensor) -> None:
    """Raise ``ValueError`` where a log-sum-exp holds NaN or +inf."""
    if lse.numel() and not bool(lse.amax() < torch.inf):
        raise ValueError("statistics.lse holds NaN or inf: the scores of some query were no numbers")


def check_weights(weights: Tensor) -> None:
    """Raise ``ValueError`` where weights hold NaN or leave 0 to 1 by more than rounding and averaging explain."""
    if not weights.numel():
        return
    low, high = (float(end) for end in torch.aminmax(weights))
    if not 0.0 <= low <= high <= LARGEST_WEIGHT:
        raise ValueError(f"weights holds {low if not low >= 0.0 else high:.4g}, which is no number between 0 and 1")


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor inf: one pass, no copy."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(low.isfinite() & high.isfinite())


class StoredFile(CheckedFile):
    """An open recording: its header, and its tensors mapped from the file."""

    def __init__(self, path: Path, mapped: MappedFile, header: Header) -> None:
        super().__init__(path, mapped, header)
        self._tensors: dict[str, Tensor] = {}
        self._masks = MaskReader(header.masks, header.tensors, self.tensor)

    @classmethod
    def open(cls, path: Path) -> "StoredFile":
        """Open a file and check all that its header says.

        Raises:
            RecordingError: it is no recording, or a damaged or newer one.
        """
        file = super().open(path)
        try:
            check_masks(file.header)
        except ValueError as error:
            raise file.damaged(error) from error
        return file

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name, mapped, its checksum compared the first time.

        Raises:
            ValueError: the checksum does not fit.
        """
        if name not in self._tensors:
            tensor = self._read(name, self._mapped.tensor)
            self._compare(name, tensor.reshape(-1).view(torch.uint8).numpy().data)
            self._tensors[name] = tensor
        return self._tensors[name]

    def mask(self, place: int) -> Mask:
        """A mask by its place, one object for all layers that share it."""
        return self._masks.mask(place)


class StoredLayer(Layer):
    """A layer whose tensors are read from its file when they are first asked for.

    The properties below stand in for fields of :class:`Layer`. A cached property gives way to a value in the instance,
    so a changed copy (``dataclasses.replace``) is a layer like any other.
    """

    _file: StoredFile
    _header: LayerHeader

    @classmethod
    def of(cls, file: StoredFile, header: LayerHeader) -> "StoredLayer":
        """The layer that a header describes."""
        layer = cls.__new__(cls)
        vars(layer).update(vars(header.layer), _file=file, _header=header)
        return layer

    @property
    def path(self) -> Path:
        """The file that its tensors are mapped from."""
        return self._file.path

    def __reduce__(self) -> tuple[object, ...]:
        return _layer_of, ({field.name: getattr(self, field.name) for field in fields(self)},)

    @cached_property
    def q(self) -> Tensor | None:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        return self._own("q")

    @cached_property
    def k(self) -> Tensor | None:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        return self._own("k")

    @cached_property
    def weights(self) -> Tensor | None:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        return self._own("weights")

    @cached_property
    def sinks(self) -> Tensor | None:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        return self._own("sinks")

    @cached_property
    def bias(self) -> Tensor | None:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        stored = self._header.bias
        try:
            return None if stored is None else self._file.tensor(stored.tensor).expand(stored.shape)
        except ValueError as error:
            raise self._file.damaged(error) from error

    @cached_property
    def mask(self) -> Mask | None:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        try:
            return None if self._header.mask is None else self._file.mask(self._header.mask)
        except ValueError as error:
            raise self._file.damaged(error) from error

    @cached_property
    def statistics(self) -> Measurements:  # pyrefly: ignore[bad-override]
        """See :class:`Layer`."""
        names = [name.removeprefix(STATISTICS) for name in self._header.tensors if name.startswith(STATISTICS)]
        return Measurements.of({name: self._own(STATISTICS + name) for name in names})

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """See :class:`Layer`."""
        if "_header" not in vars(self):
            return super().shape_of(name)
        key = name if name in ("q", "k", "weights") else STATISTICS + name
        stored = self._header.tensors.get(key)
        return None if stored is None else self._file.header.tensors[stored].form[0]

    def _own(self, name: str) -> Tensor | None:
        """One of this layer's tensors, checked for numbers that cannot be there."""
        if name not in self._header.tensors:
            return None
        try:
            tensor = self._file.tensor(self._header.tensors[name])
            found = nonfinite_of({name: tensor})
        except ValueError as error:
            raise self._file.damaged(error) from error
        if set(found) - set(self._header.nonfinite):
            raise self._file.damaged(
                ValueError(f"{self._header.tensors[name]} holds NaN or inf, which nothing accounts for")
            )
        return tensor


def _layer_of(values: dict[str, Any]) -> Layer:
    return Layer(**values)
