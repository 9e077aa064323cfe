"""A recording as one safetensors file: written whole or not at all, opened without reading more than its header.

The safetensors header's ``__metadata__`` holds ``format``, ``schema``, the recording's own header as JSON
(``schema.py``) and its CRC-32. Tensors are named ``layers.2.q``, ``layers.2.statistics.entropy``; those of masks, and
biases, are ``shared.0``, ``shared.1``, each stored once however many layers share it. Each tensor's CRC-32 stands in
the header and is checked when the tensor is first read.

Names and tokens in a file are data: none becomes a path or code, and nothing is unpickled.

The file is written here and not by ``safetensors.torch.save_file``, which wants contiguous tensors and so a second copy
of all of them at once; q and k as models make them are transposed views. Here one tensor at a time is copied.
"""

import json
import math
import os  # noqa: TC003
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from multihead.errors import RecordingError
from multihead.files import written_whole
from multihead.precision import dtype_named
from multihead.recording.layer import Layer
from multihead.recording.recording import Recording
from multihead.recording.schema import DTYPES, FORMAT, parse, schema_of
from multihead.recording.shapes import Form, form_of
from multihead.recording.stored import StoredFile, StoredLayer, check_masks, nonfinite_of
from multihead.recording.stored_masks import MaskWriter, collapsed, pack

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class _Saved:
    """One tensor to write: its form now, its content when its turn comes."""

    form: Form
    content: Callable[[], Tensor]


class _Contents:
    """All that goes into a file: the tensors by name, and the header that describes them."""

    def __init__(self, recording: Recording) -> None:
        self.tensors: dict[str, _Saved] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._masks = MaskWriter(self._shared, self._bits)
        layers = [self._layer(layer) for layer in recording.layers]
        self.header: dict[str, object] = {
            "texts": {name: [list(tokens) for tokens in sequences] for name, sequences in recording.texts.items()},
            "provenance": dict(recording.provenance),
            "masks": self._masks.nodes,
            "layers": layers,
        }

    def _layer(self, layer: Layer) -> dict[str, object]:
        own = {name: tensor for name, tensor in layer.tensors().items() if name != "bias"}
        for name, tensor in own.items():
            self.tensors[f"layers.{layer.index}.{name}"] = _plain(tensor)
        try:
            nonfinite = nonfinite_of(own)
            mask = None if layer.mask is None else self._masks.add(layer.mask)
        except ValueError as error:
            raise ValueError(f"layer {layer.index}: {error}") from error
        bias = None
        if layer.bias is not None:
            bias = {"tensor": self._shared(collapsed(layer.bias)), "shape": list(layer.bias.shape)}
        sizes = layer.sizes
        return {
            "index": layer.index,
            "name": layer.name,
            "host": layer.host,
            "sizes": [sizes.batch, sizes.heads, sizes.queries, sizes.keys],
            "heads": list(layer.heads),
            "queries": None if layer.queries is None else list(layer.queries),
            "kv_heads": list(layer.kv_heads),
            "scale": layer.scale,
            "softcap": layer.softcap,
            "mask": mask,
            "bias": bias,
            "query_text": layer.query_text,
            "key_text": layer.key_text,
            "tensors": list(own),
            "nonfinite": list(nonfinite),
        }

    def _shared(self, tensor: Tensor) -> int:
        return self._number(tensor, "plain", _plain(tensor))

    def _bits(self, allowed: Tensor) -> int:
        small = collapsed(allowed)
        form = (-(-small.numel() // 8),), "torch.uint8"
        return self._number(small, "bits", _Saved(form, lambda: pack(small)))

    def _number(self, tensor: Tensor, kind: str, saved: _Saved) -> int:
        # the same entries seen through another tensor object are the same tensor
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        key = (kind, tensor.device, tensor.dtype, *place)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            self.tensors[f"shared.{self._numbers[key]}"] = saved
        return self._numbers[key]


def _plain(tensor: Tensor) -> _Saved:
    return _Saved(form_of(tensor), lambda: tensor)


def save(recording: Recording, path: "str | os.PathLike[str]") -> None:
    """Write a recording; see :meth:`multihead.recording.Recording.save`."""
    try:
        contents = _Contents(recording)
        writer = _Writer(contents)
    except (ValueError, TypeError) as error:
        raise RecordingError(f"this recording cannot be saved: {error}.") from error
    try:
        with written_whole(path) as part, part.open("wb") as file:
            writer.write(file)
    except OSError as error:
        words = f"cannot write {path}: {error.strerror}." if error.strerror else str(error)
        raise RecordingError(words) from error


class _Writer:
    """Puts contents in safetensors' layout: header length, header, tensors without gaps, the widest numbers first."""

    def __init__(self, contents: _Contents) -> None:
        self._contents = contents
        self._forms = {name: tensor.form for name, tensor in contents.tensors.items()}
        self._order = sorted(self._forms, key=lambda name: -self._width(name))
        strange = [name for name in self._order if self._forms[name][1] not in _NAMES]
        if strange:
            raise ValueError(
                f"{strange[0]} has dtype {self._forms[strange[0]][1]}, which is none of {', '.join(DTYPES)}"
            )
        self._schema = 1
        self._length = len(self._head(dict.fromkeys(self._order, 0)))
        if self._length > _HEADER_LIMIT:
            raise ValueError(
                f"its tokens and numbers take {self._length} bytes; a safetensors header has at most {_HEADER_LIMIT}"
            )
        header = parse(self._inner(dict.fromkeys(self._order, 0)), self._forms)
        check_masks(header)
        self._schema = schema_of(header)

    def write(self, file: BinaryIO) -> None:
        """Write everything; the header goes last, when the checksums are known."""
        file.seek(self._length)
        checksums = {}
        for name in self._order:
            content = bytes_of(self._contents.tensors[name].content())
            checksums[name] = zlib.crc32(content)
            file.write(content)
        head = self._head(checksums)
        assert len(head) == self._length  # noqa: S101
        file.seek(0)
        file.write(head)

    def _width(self, name: str) -> int:
        """Bytes of one number of a tensor."""
        return dtype_named(self._forms[name][1]).itemsize

    def _inner(self, checksums: dict[str, int]) -> str:
        tensors = {
            name: {"dtype": _NAMES[dtype], "shape": list(shape), "crc32": checksums[name]}
            for name, (shape, dtype) in self._forms.items()
        }
        return json.dumps({**self._contents.header, "tensors": tensors}, allow_nan=False, separators=(",", ":"))

    def _head(self, checksums: dict[str, int]) -> bytes:
        # as wide with any checksum: the length must not depend on them
        inner = self._inner(checksums)
        inner += " " * (10 * len(checksums) - sum(len(str(checksum)) for checksum in checksums.values()))
        metadata = {
            "format": FORMAT,
            "schema": str(self._schema),
            "recording": inner,
            "crc32": f"{zlib.crc32(inner.encode()):08x}",
        }
        entries: dict[str, object] = {"__metadata__": metadata}
        start = 0
        for name in self._order:
            shape, dtype = self._forms[name]
            stop = start + self._width(name) * math.prod(shape)
            entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's numbers as bytes, in C order; a copy where they do not lie so."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def load(path: "str | os.PathLike[str]") -> Recording:
    """Open a recording that :meth:`Recording.save` wrote; a tensor is read when it is first asked for.

    Raises:
        RecordingError: the file is none, or damaged, or written by a newer version; also later, when a damaged tensor
            is read.

    Memory: the header. Tensors are mapped from the file, which must stay as it is meanwhile; saving over it is safe.
    """
    file = StoredFile.open(Path(path))
    try:
        layers = tuple(StoredLayer.of(file, header) for header in file.header.layers)
        return Recording(layers, file.header.texts, file.header.provenance)
    except ValueError as error:
        raise file.damaged(error) from error
