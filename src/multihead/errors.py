"""Every error that is not a plain ``ValueError`` or ``TypeError``.

::

    MultiheadError
    ├── NoKernelError               no kernel computes this attention; carries each one's reason
    ├── ObservationError            a model cannot be observed, or showed nothing
    │   └── UnsupportedAttentionError   one attention inside it cannot be
    ├── CheckError                  what was seen does not give the host's own output
    ├── RecordingError              a file is no recording, or a recording does not hold what was asked for
    └── SourceError                 a model, a text or a token that is not there
"""

__all__ = [
    "CheckError",
    "MultiheadError",
    "NoKernelError",
    "ObservationError",
    "RecordingError",
    "SourceError",
    "UnsupportedAttentionError",
]


class MultiheadError(Exception):
    """Base of the errors of this package."""


class NoKernelError(MultiheadError):
    """No kernel computes this attention; the message carries each one's reason."""


class ObservationError(MultiheadError):
    """A model cannot be observed, or showed nothing."""


class UnsupportedAttentionError(ObservationError):
    """One attention inside the observed model cannot be observed; the message names it and says why."""


class CheckError(MultiheadError):
    """What was seen does not give the host's own output."""


class RecordingError(MultiheadError):
    """A file is no recording or profile, or a damaged or newer one; or a recording does not hold what was asked for."""


class SourceError(MultiheadError):
    """A model, a text or a token that is not there."""
