"""What was seen: kept, asked, saved and opened again."""

from multihead.recording.query import Link
from multihead.recording.recording import Layer, Recording
from multihead.recording.store import load
from multihead.recording.traits import HeadTraits

__all__ = ["HeadTraits", "Layer", "Link", "Recording", "load"]
