"""What all models share: a configuration, and a folder to live in.

A folder holds ``config.json`` for people and programs to read, and ``model.safetensors`` with the weights. The weights'
own header repeats the configuration and has a CRC-32 of each tensor, so a pair that does not belong together, and a
damaged file, are found out. Nothing is unpickled, and no name in a file becomes a path or code.
"""

import json
import os  # noqa: TC003
import zlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from multihead.conventions import in_words
from multihead.errors import SourceError
from multihead.files import written_whole
from multihead.models.config import Config

__all__ = ["Model"]

M = TypeVar("M", bound="Model")

_FORMAT = "multihead-model"
_VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_LARGEST_CONFIG = 1 << 20


class Model(nn.Module):
    """A model made from a :class:`Config`; the base of the models of this package.

    Args:
        config: sizes and parts.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def save(self, folder: "str | os.PathLike[str]") -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, which is made where there is none.

        Each file is written whole or not at all, over one that is there. A table that the model uses twice is written
        once.

        Raises:
            OSError: the folder cannot be written.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        values = {"format": _FORMAT, "version": _VERSION, "model": type(self).__name__}
        text = json.dumps({**values, "config": json.loads(self.config.to_json())}, indent=2)
        tensors = {name: parameter.detach().contiguous() for name, parameter in self.named_parameters()}
        checksums = json.dumps({name: checksum(tensor) for name, tensor in tensors.items()})
        metadata = {"format": _FORMAT, "config": text, "checksums": checksums}
        with written_whole(target / _WEIGHTS) as part:
            save_file(tensors, part, metadata)
        with written_whole(target / _CONFIG) as part:
            part.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls: type[M], folder: "str | os.PathLike[str]") -> M:
        """The model that :meth:`save` wrote, on the CPU, in evaluation mode, in the dtype that it was saved in.

        ``Encoder.load``, ``Decoder.load`` and ``EncoderDecoder.load`` open a model of their kind, ``Model.load`` one of
        any.

        Raises:
            SourceError: there is no model, a damaged one, or one of another kind; the message says which.
        """
        path = Path(folder)
        text, values = _read_config(path)
        kinds = {kind.__name__: kind for kind in (cls, *cls.__subclasses__()) if kind is not Model}
        kind = kinds.get(str(values.get("model")))
        if kind is None:
            came = str(values.get("model"))[:80]
            raise _no_model(path, f"it holds a model {came!r}, expected {in_words(map(repr, sorted(kinds)), 'or')}")
        try:
            config = Config.from_values(values.get("config"))
        except (ValueError, TypeError) as error:
            raise _no_model(path, f"its configuration is wrong: {error}") from None
        weights = _Weights(path, text)
        # a model without numbers: what the file does not have is known before anything is allocated
        with torch.device("meta"):
            model = kind(config)
        state = weights.state_of(model)
        # positions' constants come to life here; the parameters' place is taken by those of the file
        model.to_empty(device="cpu")
        model.load_state_dict(state, assign=True)
        return model.eval()


class _Weights:
    """A file of weights, opened; the tensors are read when they are asked for."""

    def __init__(self, folder: Path, config: str) -> None:
        self._folder = folder
        if not (folder / _WEIGHTS).is_file():
            raise _no_model(folder, f"there is no {_WEIGHTS}")
        try:
            self._file = safe_open(folder / _WEIGHTS, framework="pt")
            metadata = self._file.metadata() or {}
            self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _no_model(folder, f"{_WEIGHTS} cannot be read: {error}") from None
        if metadata.get("format") != _FORMAT:
            raise _no_model(folder, f"{_WEIGHTS} is a safetensors file of something else")
        if metadata.get("config") != config:
            raise _no_model(folder, f"{_CONFIG} is not the one that {_WEIGHTS} was written with")
        self._checksums = _dictionary(metadata.get("checksums", ""))

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """The numbers of every parameter; those that the model uses twice come twice, as one tensor."""
        first = {parameter: name for name, parameter in model.named_parameters()}
        wanted = {name: tuple(parameter.shape) for parameter, name in first.items()}
        missing, extra = sorted(wanted.keys() - self.shapes), sorted(self.shapes.keys() - wanted)
        if missing or extra:
            words = f"lacks {_few(missing)}" if missing else f"has {_few(extra)}, which the model has no place for"
            raise _no_model(self._folder, f"{_WEIGHTS} {words}")
        for name, shape in wanted.items():
            if self.shapes[name] != shape:
                raise _no_model(
                    self._folder, f"{name} has shape {self.shapes[name]}, expected {shape} by its configuration"
                )
        tensors = {name: self._read(name) for name in wanted}
        return {name: tensors[first[parameter]] for name, parameter in model.named_parameters(remove_duplicate=False)}

    def _read(self, name: str) -> Tensor:
        try:
            # a copy: what safetensors gives is the file itself, mapped, and ends the program if the file shrinks
            tensor = self._file.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise _no_model(self._folder, f"{name} cannot be read: {error}") from None
        if not tensor.is_floating_point():
            raise _no_model(self._folder, f"{name} has dtype {tensor.dtype}, expected a floating-point type")
        if checksum(tensor) != self._checksums.get(name):
            raise _no_model(self._folder, f"{name} is damaged: its checksum is another")
        return tensor


def checksum(tensor: Tensor) -> int:
    """The CRC-32 of a tensor's numbers, in C order."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The text of config.json, and what it says."""
    path = folder / _CONFIG
    if not path.is_file():
        raise _no_model(folder, f"there is no {_CONFIG}")
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise _no_model(folder, f"{_CONFIG} has more than {_LARGEST_CONFIG:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _no_model(folder, f"{_CONFIG} cannot be read: {error}") from None
    values = _dictionary(text)
    if values.get("format") != _FORMAT:
        raise _no_model(folder, f"{_CONFIG} describes no model of this package")
    if values.get("version") != _VERSION:
        came = str(values.get("version"))[:80]
        raise _no_model(folder, f"{_CONFIG} has version {came}, expected {_VERSION}: a newer multihead wrote it")
    return text, values


def _dictionary(text: str) -> dict[str, Any]:
    """A JSON object, empty where the text is none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _no_model(folder: Path, reason: str) -> SourceError:
    return SourceError(f"{str(folder)!r} holds no model that can be loaded: {reason}.")


def _few(names: list[str]) -> str:
    shown = [name[:80] for name in names[:3]]
    return in_words(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
