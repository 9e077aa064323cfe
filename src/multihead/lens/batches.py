"""Batches as data loaders give them, as arguments of a model."""

import inspect
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from multihead.conventions import in_words, kind_of

_FLAGS = ("return_dict", "output_attentions", "output_hidden_states")
"""Arguments that transformers' decorators take from a forward that does not name them."""


def arguments(model: nn.Module, batch: object, number: int) -> tuple[tuple, dict[str, Any]]:
    """Positional and keyword arguments of one call of ``model``.

    Args:
        model: whose forward is called.
        batch: a mapping of keyword arguments, one tensor, or a tuple or list of positional arguments.
        number: of the batch, for messages.

    Raises:
        TypeError: something in it is nothing that a model could be given; the message names it and says what to do.
    """
    if isinstance(batch, Mapping):
        strange = next((name for name in batch if not isinstance(name, str)), None)
        if strange is not None:
            raise TypeError(f"batch {number} has the key {strange!r}: the keys of a batch are names of arguments.")
        _check_names(model, batch, number)
        for name, value in batch.items():
            _check(value, f"batch {number}: {name!r}")
        return (), {str(name): value for name, value in batch.items()}
    if isinstance(batch, Tensor):
        _check(batch, f"batch {number}")
        return (batch,), {}
    if isinstance(batch, tuple | list) and batch:
        for place, value in enumerate(batch):
            _check(value, f"batch {number}: argument {place}")
        return tuple(batch), {}
    raise TypeError(
        f"batch {number} is {kind_of(batch)}: give a dict of keyword arguments, a tensor, or a tuple of arguments."
    )


def _check_names(model: nn.Module, batch: Mapping, number: int) -> None:
    parameters = inspect.signature(model.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [name for name in batch if name not in parameters and name not in _FLAGS]
    if unknown:
        raise TypeError(
            f"batch {number}: {type(model).__name__} takes no argument {in_words(map(repr, unknown), 'or')}: leave it "
            "out of the batches."
        )


def _check(value: object, where: str) -> None:
    if value is None or isinstance(value, bool | int | float):
        return
    if isinstance(value, Tensor):
        if value.is_nested or value.layout != torch.strided:
            raise TypeError(f"{where} is no dense tensor: pad it, and pass a mask of its real tokens.")
        return
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, tuple | list):
        parts = value
    else:
        raise TypeError(f"{where} is {kind_of(value)}, which is no tensor: make a tensor of it, or leave it out.")
    for part in parts:
        _check(part, f"{where} holds something that")


def moved(value: Any, device: torch.device) -> Any:
    """Arguments with their tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)([moved(part, device) for part in value])
    return value


def checksum(args: tuple, kwargs: Mapping[str, Any]) -> int:
    """CRC-32 of all numbers of a batch."""
    found = 0
    for tensor in _tensors((args, kwargs)):
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found = zlib.crc32(plain.numpy().data, zlib.crc32(str((tensor.dtype, tuple(tensor.shape))).encode(), found))
    return found


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)


def length_of(dataloader: Iterable) -> int | None:
    """How many batches there will be, where that is known."""
    try:
        return len(dataloader)  # pyrefly: ignore[bad-argument-type]
    except TypeError:
        return None


def check_iterable(dataloader: object) -> None:
    """Raise ``TypeError`` for what gives no batches."""
    if isinstance(dataloader, str | bytes | Mapping | Tensor) or not isinstance(dataloader, Iterable):
        raise TypeError(
            f"dataloader is {kind_of(dataloader)}, expected batches one after the other: a DataLoader, or a list of "
            "dicts, tensors or tuples."
        )


def fingerprint(model: nn.Module) -> int:
    """CRC-32 of the names and shapes of a model's parameters, and of sixteen numbers of each."""
    found = 0
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            continue
        found = zlib.crc32(f"{name} {tuple(parameter.shape)}".encode(), found)
        # a quantised or distributed parameter need not show its numbers
        plain = type(parameter.data) is Tensor and not parameter.is_meta and parameter.is_floating_point()
        if not plain or not parameter.numel():
            continue
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // 16)][:16].float().cpu()
        found = zlib.crc32(some.contiguous().numpy().tobytes(), found)
    return found
