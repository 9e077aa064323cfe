"""Pictures as people have them, their patches by name, and their bytes for a page. Needs Pillow, which is optional."""

import base64
import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multihead.conventions import kind_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LARGEST_SIDE", "as_address", "as_picture", "as_spectrogram", "frame_names", "patch_names"]

LARGEST_SIDE = 1024
"""Pixels a side of a picture on a page, at most."""

_QUALITY = 90


def as_picture(image: Any) -> "Image":
    """A picture in red, green and blue.

    A file is turned as its EXIF data say, as programs that show pictures turn it; what is transparent becomes what
    stands below its transparency, as image processors do it.

    Args:
        image: a picture of Pillow's, an array (height, width, 3) of bytes or of fractions from 0 to 1, or a path.

    Raises:
        ImportError: Pillow is missing.
        ValueError: a file is no picture, or an array has another shape or other numbers.
        TypeError: it is none of these.
        OSError: the file cannot be read.
    """
    pillow, turned = _pillow()
    if isinstance(image, pillow.Image):
        return image.convert("RGB")
    if isinstance(image, (str, os.PathLike)):
        return turned(_opened(Path(image))).convert("RGB")
    array = _array(image)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"the image has shape {tuple(array.shape)}, expected (height, width, 3): colours come last.")
    return pillow.fromarray(_as_bytes(array))


def as_spectrogram(image: Any) -> "Image":
    """A spectrogram: a picture as :func:`as_picture` takes it, or an array (frequencies, frames) of any numbers.

    Such an array is drawn from its smallest number to its largest one, with its first row, the lowest frequency, below.

    Raises:
        ImportError, ValueError, TypeError, OSError: as :func:`as_picture`.
    """
    pillow, _ = _pillow()
    if isinstance(image, (pillow.Image, str, os.PathLike)) or _array(image).ndim != 2:
        return as_picture(image)
    array = _array(image).astype(np.float64)
    if not array.size or not np.isfinite(array).all():
        raise ValueError("the spectrogram is empty or holds NaN or inf: give numbers that can be drawn.")
    low, high = array.min(), array.max()
    grey = (array - low) / (high - low if high > low else 1.0) * 255
    return pillow.fromarray(grey[::-1].round().astype(np.uint8)).convert("RGB")


def as_address(picture: "Image", *, keep_shape: bool = True) -> tuple[str, tuple[int, int]]:
    """A picture as a ``data:`` address, PNG or JPEG, whichever is smaller, and its width and height.

    Args:
        picture: in red, green and blue.
        keep_shape: whether to make both sides smaller where one has more than ``LARGEST_SIDE`` pixels.
    """
    from PIL import Image

    width, height = picture.size
    by = max(1.0, width / LARGEST_SIDE, height / LARGEST_SIDE)
    factors = (by, by) if keep_shape else (max(1.0, width / LARGEST_SIDE), max(1.0, height / LARGEST_SIDE))
    size = max(1, round(width / factors[0])), max(1, round(height / factors[1]))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    written = {"png": {"optimize": True}, "jpeg": {"quality": _QUALITY, "optimize": True}}
    found = {kind: _written(picture, kind, options) for kind, options in written.items()}
    kind = min(found, key=lambda kind: len(found[kind]))
    return f"data:image/{kind};base64,{base64.b64encode(found[kind]).decode('ascii')}", size


def patch_names(grid: tuple[int, int], first: int, last: int = 0) -> list[str]:
    """Names of the tokens of a picture: what stands before the patches, the patches by row and column, what follows.

    The first of those before is taken to be the class token and the others registers.

    >>> patch_names((2, 2), 2)
    ['[CLS]', '[REG1]', 'r0c0', 'r0c1', 'r1c0', 'r1c1']
    """
    before = ["[CLS]" if place == 0 else f"[REG{place}]" for place in range(first)]
    rows, columns = grid
    patches = [f"r{row}c{column}" for row in range(rows) for column in range(columns)]
    end = first + rows * columns
    return [*before, *patches, *(f"[{place}]" for place in range(end, end + last))]


def frame_names(count: int, seconds: float) -> list[str]:
    """When each frame begins.

    >>> frame_names(3, 0.02)
    ['0.00 s', '0.02 s', '0.04 s']
    """
    digits = max(2, math.ceil(-math.log10(seconds)))
    return [f"{place * seconds:.{digits}f} s" for place in range(count)]


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('pictures need Pillow: pip install "multihead[pictures]" brings it.') from error
    return Image, ImageOps.exif_transpose


def _opened(path: Path) -> "Image":
    from PIL import Image, UnidentifiedImageError

    # a file that is not there says so itself
    with path.open("rb") as file:
        try:
            picture = Image.open(file)
            picture.load()
        except UnidentifiedImageError:
            raise ValueError(f"{path} is no picture that Pillow can read.") from None
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as a picture: {str(error).rstrip('.')}.") from error
    return picture


def _array(image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the image is {kind_of(image)}, expected a picture of Pillow's, an array or a path.")
    return image


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """Bytes, or fractions from 0 to 1 as bytes."""
    if not array.size:
        raise ValueError(f"the image has shape {tuple(array.shape)}, so it has no pixel.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"the image has dtype {array.dtype}, expected uint8, or floating point from 0 to 1.")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"the image has numbers from {low:.3g} to {high:.3g}, expected fractions from 0 to 1: undo a model's "
            "normalisation first, or give bytes (uint8)."
        )
    return (array.astype(np.float64) * 255).round().astype(np.uint8)


def _written(picture: "Image", kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
