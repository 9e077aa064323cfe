"""A small server for one reader on this machine: behind a secret, newest work first, and quick to come up.

It knows nothing of attention and imports neither torch nor, before it runs, starlette and uvicorn.
"""

from multihead.web.guard import Guard
from multihead.web.site import EXPOSED, Answer, Refusal, Site
from multihead.web.watched import Watched
from multihead.web.work import Lane, Memory, Stopped

__all__ = ["EXPOSED", "Answer", "Guard", "Lane", "Memory", "Refusal", "Site", "Stopped", "Watched"]
