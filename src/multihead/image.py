"""From a picture to a recording, with a vision model of the transformers library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from multihead.core import Statistics
from multihead.errors import SourceError
from multihead.hub import first_sentence, quiet_transformers, with_name
from multihead.lens import observe
from multihead.pixels import LARGEST_SIDE, as_picture, patch_names
from multihead.recording import Layer, Recording
from multihead.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageModel", "Seen", "load_model", "read"]

PATCHES = "text"
"""The text whose tokens are the patches."""

_PROBE = "pooling"
_CELLS = 48
_OTHERWISE = "name a folder that holds a vision model, or one of the Hugging Face hub"
_DISTILLED = "deit"
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A model that sees, its image processor, and what is to be said about them."""

    name: str
    model: torch.nn.Module
    processor: Any
    provenance: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model saw, and its attention over it."""

    recording: Recording
    """Its text is ``PATCHES``, with named tokens: ``[CLS]``, and ``r3c5`` for the patch in row 3 and column 5."""
    image: "Image"
    """As the model saw it, cropped as its processor crops but for half a pixel of its own, at most 1024 a side."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    first: int
    """Tokens before them."""


def load_model(name: str | Path) -> ImageModel:
    """A vision model (ViT, DeiT, DINOv2, the vision part of CLIP or SigLIP) by its folder or its name on the hub.

    Nothing of a model's own code is run (``trust_remote_code`` is off). Pictures are prepared by the model's own image
    processor, by transformers' implementation on Pillow, which does not need torchvision.

    Raises:
        SourceError: it is not there, cannot be opened or fetched, is no vision model, or a package is missing.
    """
    _require_packages()
    files = (("config.json",), _PROCESSORS)
    return with_name(name, _loaded, kind="vision model", files=files, otherwise=_OTHERWISE)


def read(
    image: Any,
    model: ImageModel,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Mapping[int | str, Sequence[int]] | None = None,
    queries: Sequence[int] | None = None,
    statistics: Statistics | None = None,
) -> Seen:
    """Run a model on a picture and record its attention.

    Args:
        image: a picture of Pillow's, an array (height, width, 3) of bytes or of fractions from 0 to 1, or a path.
        model: from :func:`load_model`.
        layers: attentions to record, counting from 0 in the order of the run; None: all.
        heads: heads to record; None: all.
        queries: token positions whose rows to record; None: all.
        statistics: None: the light ones and the overview.

    Raises:
        ValueError, TypeError, OSError: the picture cannot be read; a layer, head or query is out of range.
        SourceError: the model does not attend over one grid of patches.
        ObservationError: the model's attention cannot be observed.
    """
    picture = as_picture(image)
    pixels = model.processor(picture, return_tensors="pt")["pixel_values"]
    grid = _grid(model, pixels)
    tokens = grid[0] * grid[1] + 1
    asked = statistics or Statistics(blocks=(math.ceil(tokens / _CELLS),) * 2)
    with (
        torch.no_grad(),
        quiet_transformers(),
        observe(model.model, layers=layers, heads=heads, queries=queries, statistics=asked) as seen,
    ):
        _look(model, pixels)
    recording = seen.recording()
    first = _tokens_before(recording, grid, model)
    names = patch_names(grid, first)
    config: Any = model.model.config
    if first == 2 and config.model_type == _DISTILLED:
        names[1] = "[DIST]"
    told = {"patches": f"{grid[0]} × {grid[1]}, after {first} other tokens"}
    named = replace(
        recording,
        layers=tuple(_over_patches(layer) for layer in recording.layers),
        texts={PATCHES: [names], **_probes(recording)},
        provenance={**recording.provenance, **model.provenance, **told},
    )
    return Seen(named, _as_seen(picture, model.processor, pixels), grid, first)


def _look(model: ImageModel, pixels: Tensor) -> None:
    try:
        model.model(pixel_values=pixels)
    except ValueError as error:
        if not _raised_by_transformers(error):
            raise
        # pictures of another size than the model was made for
        raise SourceError(
            f"{model.name} cannot look at what its image processor gives: {first_sentence(error)}"
        ) from error


def _raised_by_transformers(error: Exception) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith("transformers.")


def _over_patches(layer: Layer) -> Layer:
    """A layer with the names of its texts; a learned query that pools all patches is none of them."""
    pools = layer.sizes.queries != layer.sizes.keys
    return replace(layer, query_text=_PROBE if pools else PATCHES, key_text=PATCHES)


def _probes(recording: Recording) -> dict[str, list[list[str]]]:
    counts = [layer.sizes.queries for layer in recording.layers if layer.sizes.queries != layer.sizes.keys]
    return {_PROBE: [[f"[PROBE{place}]" for place in range(counts[0])]]} if counts else {}


def _grid(model: ImageModel, pixels: Tensor) -> tuple[int, int]:
    size = getattr(model.model.config, "patch_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2:
        raise SourceError(
            f"{model.name} does not say how large its patches are, so they cannot be found in the picture."
        )
    height, width = pixels.shape[-2:]
    return height // sides[0], width // sides[1]


def _tokens_before(recording: Recording, grid: tuple[int, int], model: ImageModel) -> int:
    """Tokens before the patches, the same in every layer."""
    patches = grid[0] * grid[1]
    lengths = {layer.sizes.keys for layer in recording.layers}
    first = min(lengths, default=0) - patches
    if len(lengths) != 1 or first < 0:
        raise SourceError(
            f"{model.name} does not attend over one grid of {grid[0]} × {grid[1]} patches, but over "
            f"{min(lengths, default=0)} to {max(lengths, default=0)} tokens: it cannot be shown over the picture."
        )
    return first


def _as_seen(picture: "Image", processor: Any, pixels: Tensor) -> "Image":
    """What the processor leaves of a picture, in more pixels than the model sees where the picture has them."""
    height, width = pixels.shape[-2:]
    times = max(1, min(LARGEST_SIDE // max(height, width), math.ceil(max(picture.size) / max(height, width))))
    for factor in dict.fromkeys((times, 1)):
        sizes = {name: getattr(processor, name, None) for name in ("size", "crop_size")}
        larger = {
            name: {side: number * factor for side, number in dict(size).items() if number is not None}
            for name, size in sizes.items()
            if size
        }
        shown = processor(picture, **larger, do_normalize=False, do_rescale=False, return_tensors="pt")["pixel_values"]
        if shown.shape[-2:] == (height * factor, width * factor):
            break
    return as_picture(shown[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy())


def _require_packages() -> None:
    for package, extra in (("transformers", "hf"), ("PIL", "pictures")):
        try:
            __import__(package)
        except ImportError as error:
            raise SourceError(
                f'reading pictures needs {"Pillow" if package == "PIL" else package}: pip install "multihead[{extra}]" '
                "brings it."
            ) from error


def _loaded(source: str | Path, name: str, *, local: bool) -> ImageModel:
    """Image processor and model from one place."""
    import transformers
    from safetensors import SafetensorError

    options = {"local_files_only": local, "trust_remote_code": False}
    try:
        with quiet_transformers():
            processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil", **options)
            whole = transformers.AutoModel.from_pretrained(source, attn_implementation="sdpa", **options)
    except ImportError as error:
        raise SourceError(
            f"the image processor of {name!r} does not run on Pillow alone: pip install torchvision, which it needs."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise SourceError(f"the vision model {name!r} cannot be opened: {first_sentence(error)}") from error
    model = getattr(whole, "vision_model", whole).eval()
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise SourceError(f"{name} is no vision model: it does not read a picture by itself.")
    provenance = {
        "model": name,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "multihead": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return ImageModel(name, model, processor, provenance)
