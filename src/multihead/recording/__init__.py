"""What was seen: kept, asked, saved and opened again."""

import importlib
from typing import TYPE_CHECKING, Any

from multihead.recording.outline import PROMPT_TOKENS

if TYPE_CHECKING:
    from multihead.recording.layer import Layer
    from multihead.recording.query import Link
    from multihead.recording.recording import Recording
    from multihead.recording.store import load
    from multihead.recording.traits import HeadTraits

__all__ = ["PROMPT_TOKENS", "HeadTraits", "Layer", "Link", "Recording", "load"]

_HOMES = {"HeadTraits": "traits", "Layer": "layer", "Link": "query", "Recording": "recording", "load": "store"}


def __getattr__(name: str) -> Any:
    """Open a file of this room when something in it is asked for: what a file says of itself is read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'multihead.recording' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"multihead.recording.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
