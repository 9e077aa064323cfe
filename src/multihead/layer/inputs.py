"""What the layers do alike with what comes in: features checked, norms, a caller's mask and bias."""

from torch import Tensor, nn

from multihead.biases import Bias
from multihead.conventions import kind_of, shape_of
from multihead.core import autocasts
from multihead.layer.cache import KeysValues
from multihead.masks import Mask, Sizes


def check_tokens(name: str, tensor: Tensor, features: int, projection: nn.Module) -> None:
    """Raise unless ``tensor`` is (batch, tokens, features), of the type and on the device of the projection.

    Raises:
        ValueError, TypeError: it is not; the message says how.
    """
    weight = getattr(projection, "weight", None)
    if (
        isinstance(tensor, Tensor)
        and isinstance(weight, Tensor)
        and tensor.ndim == 3
        and tensor.shape[-1] == features
        and tensor.dtype == weight.dtype
        and tensor.device == weight.device
        and not tensor.is_nested
    ):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is {kind_of(tensor)}, expected a tensor (batch, tokens, {features}).")
    if tensor.is_nested or tensor.ndim != 3 or tensor.shape[-1] != features:
        came = "is a nested tensor" if tensor.is_nested else f"has shape {shape_of(tensor)}"
        raise ValueError(f"{name} {came}, expected (batch, tokens, {features}).")
    if not isinstance(weight, Tensor):
        return
    if tensor.device != weight.device:
        raise ValueError(f"{name} is on {tensor.device} but the layer on {weight.device}: move one with .to().")
    if tensor.dtype != weight.dtype and not autocasts(tensor.device):
        raise TypeError(
            f"{name} has dtype {tensor.dtype} but the layer {weight.dtype}: convert one with .to(), or run under "
            "torch.autocast."
        )


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """A norm in its own precision, which under autocast is not that of x."""
    weight = getattr(norm, "weight", None)
    return norm(x).to(x.dtype) if weight is None else norm(x.to(weight.dtype)).to(x.dtype)


def together(given: Tensor | Bias, found: Bias, q: Tensor, kv: KeysValues) -> Tensor:
    """The caller's bias and the position's as one tensor."""
    sizes = Sizes(q.shape[0], q.shape[1], q.shape[2], kv.k.shape[2])
    return (given.dense(sizes) if isinstance(given, Bias) else given) + found.dense(sizes)


def without_first(
    dropped: int, mask: Mask | None, bias: Tensor | Bias | None
) -> tuple[Mask | None, Tensor | Bias | None]:
    """What is left to say of a mask and a bias when the first keys are no longer kept."""
    if isinstance(bias, Bias):
        bias = bias.without_first(dropped)
    elif bias is not None and bias.shape[-1] != 1:
        bias = bias[..., dropped:]
    return None if mask is None else mask.without_first(dropped), bias
