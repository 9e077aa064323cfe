"""What a profile holds, and its file: safetensors with a JSON header, written whole or not at all.

The safetensors header's ``__metadata__`` holds ``format``, ``schema``, the profile's own header as JSON and its CRC-32.
Tensors are named ``layers.2.queries``, ``layers.2.offsets`` and ``layers.2.entropy.mean``; the header has the CRC-32 of
each. What a file says is checked before it is believed, and nothing is unpickled.
"""

import json
import os  # noqa: TC003
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from multihead.conventions import in_words
from multihead.errors import ObservationError, RecordingError
from multihead.files import other_than_a_file, written_whole
from multihead.lens.summaries import KINDS, OFFSET_EDGES, Summary

FORMAT = "multihead-profile"
SCHEMA = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerProfile:
    """One attention over a data set; head axes are those of ``heads``. Immutable."""

    index: int
    """Its number in order of first appearance."""
    name: str
    """Path of the module that computed it."""
    host: str
    heads: tuple[int, ...]
    """The model's own numbers."""
    queries: Int[Tensor, " head"]
    """Real queries that saw something."""
    offsets: Float[Tensor, "head bin"]
    """Σ over real queries of the weights, by distance; bins as in ``offset_edges``. Divide by ``queries``."""
    statistics: Mapping[str, Summary]

    def merged(self, other: "LayerProfile") -> "LayerProfile":
        """Over both data sets.

        Raises:
            ObservationError: it is another layer, or other heads were observed.
        """
        for what in ("name", "heads"):
            mine, others = getattr(self, what), getattr(other, what)
            if mine != others:
                raise ObservationError(
                    f"layer {self.index} has {what} {mine} in one profile and {others} in the other."
                )
        return replace(
            self,
            queries=self.queries + other.queries,
            offsets=self.offsets + other.offsets,
            statistics={name: found.merged(other.statistics[name]) for name, found in self.statistics.items()},
        )

    @property
    def offset_edges(self) -> tuple[int, ...]:
        """Edges of the bins of ``offsets``: ..., -3, -1, 0, 1, 2, 4, ...; the outermost bins hold the rest."""
        return OFFSET_EDGES

    def tensors(self) -> dict[str, Tensor]:
        """All it holds, by name."""
        found = {"queries": self.queries, "offsets": self.offsets}
        for name, summary in self.statistics.items():
            found |= {f"{name}.{part}": tensor for part, tensor in summary.tensors().items()}
        return found

    def __repr__(self) -> str:
        most = int(self.queries.max()) if len(self.queries) else 0
        return f"LayerProfile {self.index} ({self.name}): {len(self.heads)} heads, {most} queries"


@dataclass(frozen=True, eq=False, kw_only=True)
class Profile:
    """What the heads of a model do over a data set, in a size that does not depend on it. Immutable.

    ``profile.layers[2].statistics["entropy"].mean`` has one number for each head.
    """

    model: str
    """Name of its class."""
    fingerprint: int
    """Of its weights: names, shapes and some of their numbers."""
    statistics: tuple[str, ...]
    layers: tuple[LayerProfile, ...] = ()
    texts: int = 0
    """Sequences, as the first attention of each batch has them."""
    batches: int = 0
    inputs: int = 0
    """CRC-32 of all batches so far, by which a run that goes on knows that the data are the same."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def merged(self, other: "Profile") -> "Profile":
        """The profile over both data sets: the same as one over all of it, to float64 precision.

        Raises:
            ObservationError: they are profiles of different models, layers, heads or statistics.
        """
        for what, differs in (
            ("models", (self.model, self.fingerprint) != (other.model, other.fingerprint)),
            ("statistics", self.statistics != other.statistics),
        ):
            if differs:
                raise ObservationError(
                    f"profiles of different {what} cannot be merged: {self._words(what)}, and {other._words(what)}."
                )
        layers = {layer.index: layer for layer in self.layers}
        for layer in other.layers:
            layers[layer.index] = layers[layer.index].merged(layer) if layer.index in layers else layer
        return replace(
            self,
            layers=tuple(layers[index] for index in sorted(layers)),
            texts=self.texts + other.texts,
            batches=self.batches + other.batches,
            inputs=zlib.crc32(other.inputs.to_bytes(4, "little"), self.inputs),
        )

    def _words(self, what: str) -> str:
        if what == "statistics":
            return in_words(self.statistics)
        return f"{self.model} with weights {self.fingerprint:08x}"

    def save(self, path: "str | os.PathLike[str]") -> None:
        """Write it to a file, whole or not at all.

        Raises:
            RecordingError: the file cannot be written.
        """
        tensors = {f"layers.{layer.index}.{name}": tensor for layer in self.layers for name, tensor in _own(layer)}
        header = json.dumps(
            {
                "model": self.model,
                "fingerprint": self.fingerprint,
                "statistics": list(self.statistics),
                "texts": self.texts,
                "batches": self.batches,
                "inputs": self.inputs,
                "provenance": dict(self.provenance),
                "layers": [
                    {"index": layer.index, "name": layer.name, "host": layer.host, "heads": list(layer.heads)}
                    for layer in self.layers
                ],
                "tensors": {name: _crc32(tensor) for name, tensor in tensors.items()},
            }
        )
        metadata = {"format": FORMAT, "schema": str(SCHEMA), "profile": header, "crc32": _crc32_of(header.encode())}
        content = safetensors.torch.save(tensors, metadata)
        try:
            with written_whole(path) as part:
                part.write_bytes(content)
        except OSError as error:
            words = f"cannot write {path}: {error.strerror}." if error.strerror else str(error)
            raise RecordingError(words) from error

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "Profile":
        """Read what :meth:`save` wrote.

        Raises:
            RecordingError: the file is no profile, or damaged, or written by a newer version.
        """
        try:
            kind = other_than_a_file(path)
            content = b"" if kind is not None else Path(path).read_bytes()
        except OSError as error:
            raise RecordingError(f"cannot read {path}: {error.strerror}.") from error
        if kind is not None:
            raise RecordingError(f"cannot read {path}: it is {kind}.")
        try:
            metadata, tensors = _opened(content)
        except (ValueError, KeyError, safetensors.SafetensorError) as error:
            raise RecordingError(
                f"{path} is no profile: it is not the safetensors file that Profile.save writes."
            ) from error
        if metadata.get("schema") != str(SCHEMA):
            raise RecordingError(
                f"{path} has schema {metadata.get('schema')!a:.20}, and this version of multihead reads {SCHEMA}."
            )
        try:
            return _parsed(metadata, tensors)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordingError(f"{path} is damaged: {error}.") from error

    def __repr__(self) -> str:
        return f"Profile({self.model}: {self.texts} texts in {self.batches} batches, {len(self.layers)} layers)"


def _own(layer: LayerProfile) -> list[tuple[str, Tensor]]:
    # the empty summaries of a layer share their zeros, which safetensors would refuse
    return [(name, tensor.clone().contiguous()) for name, tensor in layer.tensors().items()]


def _crc32(tensor: Tensor) -> str:
    return _crc32_of(tensor.contiguous().numpy().tobytes())


def _crc32_of(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"


def _opened(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file; ``ValueError`` or ``KeyError`` for what is none."""
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError(metadata["format"])
    return metadata, tensors


def _parsed(metadata: dict[str, str], tensors: dict[str, Tensor]) -> Profile:
    text = metadata["profile"]
    if _crc32_of(text.encode()) != metadata["crc32"]:
        raise ValueError("its header does not have the checksum that it had")
    header = json.loads(text)
    wrong = [name for name, checksum in header["tensors"].items() if _crc32(tensors[name]) != checksum]
    if wrong or set(header["tensors"]) != set(tensors):
        raise ValueError(f"{wrong[0] if wrong else 'its list of tensors'} is not as it was written")
    statistics = tuple(str(name) for name in header["statistics"])
    for name in statistics:
        if name not in KINDS:
            raise ValueError(f"it holds a statistic {name!a:.40}, which this version does not know")
    return Profile(
        model=str(header["model"]),
        fingerprint=int(header["fingerprint"]),
        statistics=statistics,
        layers=tuple(_layer(layer, statistics, tensors) for layer in header["layers"]),
        texts=int(header["texts"]),
        batches=int(header["batches"]),
        inputs=int(header["inputs"]),
        provenance={str(name): str(value) for name, value in header["provenance"].items()},
    )


def _layer(header: dict, statistics: tuple[str, ...], tensors: dict[str, Tensor]) -> LayerProfile:
    index, heads = int(header["index"]), tuple(int(head) for head in header["heads"])

    def own(name: str, like: Tensor) -> Tensor:
        tensor = tensors[f"layers.{index}.{name}"]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(f"layers.{index}.{name} has shape {tuple(tensor.shape)} and {tensor.dtype}")
        return tensor

    summaries = {}
    for name in statistics:
        empty = Summary.empty(len(heads), KINDS[name])
        parts = {part: own(f"{name}.{part}", like) for part, like in empty.tensors().items()}
        summaries[name] = Summary(**parts, edges=empty.edges)
    return LayerProfile(
        index=index,
        name=str(header["name"]),
        host=str(header["host"]),
        heads=heads,
        queries=own("queries", torch.zeros(len(heads), dtype=torch.int64)),
        offsets=own("offsets", torch.zeros(len(heads), len(OFFSET_EDGES) - 1, dtype=torch.float64)),
        statistics=summaries,
    )
