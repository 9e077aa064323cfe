"""The tensors of a safetensors file, mapped into memory when they are asked for: as numpy's arrays, or as torch's."""

import json
import mmap
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open

from multihead.recording.schema import DTYPES

if TYPE_CHECKING:
    import torch

    from multihead.recording.shapes import Form

WINDOW = 1 << 30
"""Bytes that are mapped together: a multiple of every system's pages."""


class MappedFile:
    """A safetensors file: its metadata, and its tensors, none of which is copied.

    What is written to a tensor stays in this process. The reader of safetensors maps a whole file like that, which
    Linux refuses of one that is larger than the memory: all that may be written to might have to be kept. So here it is
    done in windows.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be read, or is none.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="np") as checked:
            self.metadata: dict[str, str] = checked.metadata() or {}
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        with os.fdopen(os.dup(self._file), "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        self._places = {name: tuple(begin + at for at in one["data_offsets"]) for name, one in header.items()}
        self._end = max((end for _, end in self._places.values()), default=begin)
        self._windows: dict[int, mmap.mmap] = {}
        self.forms: dict[str, Form] = {
            name: (tuple(one["shape"]), DTYPES[one["dtype"]]) for name, one in header.items() if one["dtype"] in DTYPES
        }
        """Shape and dtype of every tensor that a recording could hold."""

    def tensor(self, name: str) -> "torch.Tensor":
        """A tensor by its name.

        Raises:
            OSError, ValueError: it cannot be mapped, for example of a file that was cut since.
        """
        # numpy's arrays are had without waiting for torch
        import torch

        from multihead.precision import dtype_named

        shape, dtype = self.forms[name][0], dtype_named(self.forms[name][1])
        raw = self.raw(name)
        return torch.from_numpy(raw).view(dtype).view(shape) if len(raw) else torch.empty(shape, dtype=dtype)

    def array(self, name: str) -> np.ndarray:
        """The same as numpy's array.

        Raises:
            OSError, ValueError: as :meth:`tensor`; or numpy has no such type of numbers.
        """
        shape, dtype = self.forms[name]
        if dtype == "torch.bfloat16":
            raise ValueError("numpy has no bfloat16")
        return self.raw(name).view(dtype.removeprefix("torch.")).reshape(shape)

    def raw(self, name: str) -> np.ndarray:
        """Its bytes, u8.

        Raises:
            OSError, ValueError: as :meth:`tensor`.
        """
        begin, end = self._places[name]
        if begin == end:
            return np.empty(0, np.uint8)
        start, window = self._window(begin, end)
        return np.frombuffer(window, np.uint8, count=end - begin, offset=begin - start)

    def _window(self, begin: int, end: int) -> tuple[int, mmap.mmap]:
        """Where a mapped part of the file that holds these bytes begins, and the part."""
        start = begin // WINDOW * WINDOW
        if end > start + WINDOW:
            start = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            return start, self._mapped(start, end)
        if start not in self._windows:
            self._windows[start] = self._mapped(start, min(start + WINDOW, self._end))
        return start, self._windows[start]

    def _mapped(self, start: int, end: int) -> mmap.mmap:
        return mmap.mmap(self._file, end - start, access=mmap.ACCESS_COPY, offset=start)
