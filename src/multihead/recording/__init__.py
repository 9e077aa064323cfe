"""What was seen: kept, asked, saved and opened again."""

from multihead.recording.recording import Layer, Recording

__all__ = ["Layer", "Recording"]
