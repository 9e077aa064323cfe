"""A recording's file, opened and checked as far as that can be done without torch: its header, and bytes of tensors."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError

from multihead.errors import RecordingError
from multihead.files import other_than_a_file
from multihead.recording.mapped import MappedFile
from multihead.recording.outline import RecordingOutline
from multihead.recording.schema import FORMAT, SCHEMA, Header, parse
from multihead.recording.shapes import Form

_File = TypeVar("_File", bound="CheckedFile")
_Read = TypeVar("_Read")


class CheckedFile:
    """An open recording's file: its header, all of it checked but the masks, and its tensors as numpy's arrays."""

    def __init__(self, path: Path, mapped: MappedFile, header: Header) -> None:
        self.path, self.header = path, header
        self._mapped = mapped

    @classmethod
    def open(cls: type[_File], path: Path) -> _File:
        """Open a file and check what its header says.

        Raises:
            RecordingError: it is no recording, or a damaged or newer one.
        """
        try:
            kind = other_than_a_file(path)
            if kind is not None:
                # a pipe that nobody writes to would be waited for without end
                raise RecordingError(f"cannot read {path}: it is {kind}; recordings are files.")
            mapped = MappedFile(path)
        except OSError as error:
            raise RecordingError(f"cannot read {path}: {error.strerror or error}.") from error
        except SafetensorError as error:
            raise RecordingError(
                f"{path} is no recording, or a damaged one: it is no whole safetensors file ({error})."
            ) from error
        metadata = mapped.metadata
        if metadata.get("format") != FORMAT:
            raise RecordingError(
                f"{path} is a safetensors file of something else, perhaps a model's weights: recordings come from "
                "Recording.save."
            )
        schema = metadata.get("schema", "")
        if schema.isdecimal() and len(schema) < 10 and int(schema) > SCHEMA:
            raise RecordingError(
                f"{path} was written by a newer multihead (schema {int(schema)}; this one reads {SCHEMA}): "
                "upgrade multihead."
            )
        try:
            header = _header(metadata, mapped.forms)
        except ValueError as error:
            raise _damaged(path, error) from error
        return cls(path, mapped, header)

    @property
    def outline(self) -> RecordingOutline:
        """The recording without its tensors.

        Raises:
            ValueError: its layers and texts do not fit each other.
        """
        return RecordingOutline(
            tuple(layer.layer for layer in self.header.layers), self.header.texts, self.header.provenance
        )

    def array(self, name: str) -> np.ndarray:
        """A tensor by its name, mapped, its checksum compared.

        Raises:
            ValueError: the checksum does not fit, or numpy has no such type of numbers.
        """
        found = self._read(name, self._mapped.array)
        self._compare(name, found.reshape(-1).view(np.uint8).data)
        return found

    def _read(self, name: str, read: Callable[[str], _Read]) -> _Read:
        """What reading a tensor gives; ``ValueError`` where it is not there any more."""
        try:
            return read(name)
        except (OSError, ValueError) as error:
            raise ValueError(f"tensor {name} cannot be read ({error})") from error

    def _compare(self, name: str, content: memoryview) -> None:
        """Raise ``ValueError`` where a tensor's bytes are not those that were written."""
        if zlib.crc32(content) != self.header.tensors[name].crc32:
            raise ValueError(f"tensor {name} is not what was written: its checksum does not fit")

    def damaged(self, error: Exception) -> RecordingError:
        """The error for a fact about this file."""
        return _damaged(self.path, error)


def _header(metadata: Mapping[str, str], forms: Mapping[str, Form]) -> Header:
    schema, text = metadata.get("schema", ""), metadata.get("recording", "")
    if schema not in {str(known) for known in range(1, SCHEMA + 1)}:
        raise ValueError(f"schema {schema!a:.40} is none there has been")
    if metadata.get("crc32") != f"{zlib.crc32(text.encode()):08x}":
        raise ValueError("the header's checksum does not fit it")
    return parse(text, forms)


def _damaged(path: Path, error: Exception) -> RecordingError:
    return RecordingError(f"{path} is a damaged recording: {str(error).rstrip('.')}.")
