"""What was seen: kept, asked, saved and opened again."""

from multihead.recording.layer import Layer
from multihead.recording.query import Link
from multihead.recording.recording import PROMPT_TOKENS, Recording
from multihead.recording.store import load
from multihead.recording.traits import HeadTraits

__all__ = ["PROMPT_TOKENS", "HeadTraits", "Layer", "Link", "Recording", "load"]
