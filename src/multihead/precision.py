"""The types of numbers in which weights and statistics are computed."""

import torch


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which scores, weights and statistics of inputs of ``dtype`` are computed: float32 or float64."""
    return torch.promote_types(dtype, torch.float32)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The type in which many weights are added up: float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def dtype_named(name: str) -> torch.dtype:
    """A dtype by its own name.

    >>> dtype_named("torch.float32")
    torch.float32
    """
    return getattr(torch, name.removeprefix("torch."))
