"""A recording in a notebook: the page in a frame of its own, as the output of a cell. ``docs/notebook.md``.

The frame is sandboxed, so that the notebook's styles and keys and those of the page cannot meet. A page that is not too
large stands in it whole. Of a larger one only the document stands there, and asks this process for the numbers that it
shows, as it would ask the server, through messages to the widget around it.
"""

import asyncio
import html
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future  # noqa: TC003
from functools import cache
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from multihead.counting import whole
from multihead.errors import RecordingError, SourceError
from multihead.recording import Recording
from multihead.view.entries import Data
from multihead.view.page import fits, html_of, page
from multihead.view.pictures import Pictures
from multihead.view.served import Served
from multihead.view.server import files_of
from multihead.web import Refusal, Stopped

if TYPE_CHECKING:
    import anywidget

__all__ = ["Answers", "shown_in_notebook", "widget"]

WHOLE_PAGE = 16_000_000
"""Bytes of a page that a widget holds whole; a larger one asks for its numbers."""

SAVED_PAGE = 8_000_000
"""Bytes of a page that is saved with the notebook, for where there is no kernel."""

HEIGHT = 720
"""Pixels of a frame."""

_QUESTIONS = ("tile", "row", "column", "partners")
_LARGEST_ID = 2**53
_VIEW = "application/vnd.jupyter.widget-view+json"
_FRAME = (
    '<iframe sandbox="allow-scripts" title="What each head attends to" style="width: 100%; height: {height}px; '
    'border: 0" srcdoc="{page}">{otherwise}</iframe>'
)

Send = Callable[[dict[str, object], list[bytes]], None]


def widget(
    recording: Recording,
    *,
    start: Mapping[str, object] | None = None,
    item: int = 0,
    title: str | None = None,
    height: int = HEIGHT,
    pictures: Pictures | None = None,
) -> "anywidget.AnyWidget":
    """The page of a recording as a widget, for Jupyter and whatever else shows anywidget's.

    Its trait ``state`` is what is chosen in the page, as the text that a page's address ends with; setting it chooses.
    ``height`` may be set too. ``close()`` frees the recording.

    Args:
        recording: as for :func:`multihead.view.page`, of any size.
        start: what is chosen at first, e.g. ``{"layer": 5, "heads": [9], "token": 18}``.
        item: the sequence of the batch.
        title: the page's; None: the model's name.
        height: of the frame, in pixels.
        pictures: as for :func:`multihead.view.page`.

    Raises:
        ImportError: anywidget is missing.
        ValueError, RecordingError, SourceError: there is nothing to show; or the height is no height.
        TypeError: the height is no whole number.

    Memory: the page; if it would pass 16 MB, the recording and what :class:`multihead.view.served.Served` keeps.
    """
    height = whole("height", height)
    if height < 1:
        raise ValueError(f"height={height} leaves no room: say how many pixels, for example height={HEIGHT}.")
    made = _widget_class()
    if fits(recording, item=item, most=WHOLE_PAGE):
        text = page(recording, start=start, item=item, title=title, pictures=pictures, quotable=True)
        return made(repr(recording), text, None, height)
    served = Served(
        recording,
        item=item,
        title=title,
        opening=start,
        watched=files_of(recording),
        pictures=pictures,
        kind="frame",
    )
    return made(repr(recording), html_of(served.document, Data(), quotable=True), served, height)


def shown_in_notebook(recording: Recording) -> tuple[dict[str, object], dict[str, object]]:
    """What IPython asks an object for: data by media type, and metadata.

    The widget where there is a kernel and anywidget, text/html that needs neither, and text/plain. A terminal is given
    the last alone.
    """
    told = repr(recording)
    shell = _shell()
    kernel = getattr(shell, "kernel", None) is not None
    if shell is not None and not kernel:
        return {"text/plain": told}, {}
    try:
        if kernel and find_spec("anywidget") is not None:
            view: Any = widget(recording)
            return view._repr_mimebundle_()
        text = page(recording, quotable=True) if fits(recording, most=SAVED_PAGE) else None
    except (ValueError, RecordingError, SourceError) as error:
        return {"text/plain": told, "text/html": _said(told, f"There is no page of it: {error}")}, {}
    return {"text/plain": told, "text/html": _static(told, text)}, {}


def _static(told: str, text: str | None) -> str:
    """The page as HTML that a notebook can keep, or what to do instead."""
    if text is None or len(text.encode()) > SAVED_PAGE:
        return _said(
            told,
            f"Its page is larger than the {SAVED_PAGE // 1_000_000} MB that a notebook keeps: run this cell where "
            "anywidget is installed (pip install 'multihead[notebook]').",
        )
    otherwise = _said(told, "To see its page, open this notebook in Jupyter and run the cell.")
    return _FRAME.format(height=HEIGHT, page=html.escape(text), otherwise=otherwise)


def _said(told: str, sentence: str) -> str:
    return f"<p>{html.escape(told)}</p><p>{html.escape(sentence)}</p>"


def _shell() -> Any:
    """IPython's shell where this process is one."""
    known = sys.modules.get("IPython")
    return None if known is None else known.get_ipython()


class Answers:
    """What the pages in frames ask, answered in threads, so that the notebook goes on.

    A question is ``{"kind": "ask", "id": 7, "name": "row", "parameters": {"layer": "0", ...}}``, with the names and
    parameters of ``docs/server.md``; ``{"kind": "drop", "id": 7}`` takes it back. The answer is ``{"id": 7}`` with one
    buffer, or ``{"id": 7, "error": "one sentence"}``.

    Args:
        served: what answers.
        send: sends an answer with its buffers; called in a thread.
    """

    def __init__(self, served: Served, send: Send) -> None:
        self._served, self._send = served, send
        self._asked: dict[int, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def received(self, message: object) -> None:
        """Take a question, or take it back; what is neither is logged, for there is nobody to answer."""
        known = message if isinstance(message, dict) else {}
        kind, number = known.get("kind"), known.get("id")
        if kind not in ("ask", "drop") or type(number) is not int or not 0 <= number < _LARGEST_ID:
            logging.getLogger("multihead").warning("the widget was sent %.200r, which is no question.", message)
        elif kind == "drop":
            future = self._asked.get(number)
            if future is not None:
                future.cancel()
        elif number in self._asked:
            logging.getLogger("multihead").warning("the widget was asked question %d twice.", number)
        else:
            answering = self._answer(number, known.get("name"), known.get("parameters"))
            future = self._asked[number] = asyncio.run_coroutine_threadsafe(answering, self._loop)
            future.add_done_callback(lambda done: self._ended(number, done))

    def _ended(self, number: int, done: "Future[None]") -> None:
        self._asked.pop(number, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            logging.getLogger("multihead").error("an answer to the widget could not be sent.", exc_info=error)

    async def _answer(self, number: int, name: object, parameters: object) -> None:
        try:
            found = await self._served.answer(_name(name), _parameters(parameters), _never)
        except Refusal as refused:
            self._send({"id": number, "error": refused.sentence}, [])
        except Stopped:
            self._send({"id": number, "error": "The widget was closed: run the cell again."}, [])
        except Exception:
            logging.getLogger("multihead").exception("the widget could not answer %.200r.", (name, parameters))
            self._send({"id": number, "error": "The kernel failed at this: its log says how."}, [])
        else:
            self._send({"id": number}, [found.body])

    def close(self) -> None:
        """End what runs."""
        if self._loop.is_closed():
            return
        self._served.close()
        asyncio.run_coroutine_threadsafe(_end_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _never() -> bool:
    """Whether who asks has left: then the question is taken back."""
    return False


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _name(name: object) -> str:
    if name not in _QUESTIONS:
        raise Refusal(404, f"Nothing answers to {str(name)[:20]!a} here.")
    return str(name)


def _parameters(parameters: object) -> dict[str, str]:
    if not isinstance(parameters, dict) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in parameters.items()
    ):
        raise Refusal(400, "The parameters are no object of text to text.")
    return parameters


@cache
def _widget_class() -> "type[Any]":
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise ImportError("the widget is made with anywidget: pip install 'multihead[notebook]'.") from error

    class RecordingWidget(anywidget.AnyWidget):
        """A page in the output of a cell."""

        _esm = _script()
        page = traitlets.Unicode(read_only=True).tag(sync=True)
        state = traitlets.Unicode().tag(sync=True)
        height = traitlets.Int(min=1).tag(sync=True)

        def __init__(self, told: str, text: str, served: Served | None, height: int) -> None:
            self._told = told
            # before the widget is there, so that the page is sent once
            self.set_trait("page", text)
            super().__init__(height=height)
            self.answers = None if served is None else Answers(served, self.send)
            self.on_msg(self._received)

        def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, object], dict[str, object]]:
            data, metadata = super()._repr_mimebundle_() or ({}, {})
            saved = _static(self._told, self.page if self.answers is None else None)
            return {**data, "text/plain": self._told, "text/html": saved}, metadata

        def _received(self, _: object, content: object, buffers: object) -> None:  # noqa: ARG002
            if self.answers is not None:
                self.answers.received(content)

        def close(self) -> None:
            """Take the widget out of the notebook, and free the recording."""
            if self.answers is not None:
                self.answers.close()
            super().close()

    return RecordingWidget


def _script() -> str:
    file = resources.files("multihead.view").joinpath("static", "widget.js")
    if not file.is_file():
        raise FileNotFoundError(
            "the viewer's widget.js is missing from this installation: "
            "in a checkout run `npm ci && npm run build` in viewer/."
        )
    return file.read_text(encoding="utf-8")
