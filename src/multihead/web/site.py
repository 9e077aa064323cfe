"""A site: the address, which is there at once, and what answers behind it, which may take longer to be opened."""

import asyncio
import contextlib
import errno
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from multihead.errors import SourceError
from multihead.web.guard import Guard, in_url, is_loopback, is_wildcard
from multihead.web.work import Stopped

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

EXPOSED = "anyone on the network who has this address can read the text."
"""What to say of a site that is not for this machine alone."""

_PATIENCE = 1
_LONGEST_START = 30.0
_CALM = 1.0


@dataclass(frozen=True)
class Answer:
    """What is sent: bytes and their kind."""

    body: bytes
    kind: str = "application/octet-stream"


class Refusal(Exception):  # noqa: N818
    """A request that is not answered, with the status and the sentence that say why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Content(Protocol):
    """What answers."""

    async def answer(self, name: str, parameters: Mapping[str, str], gone: Callable[[], Awaitable[bool]]) -> Answer:
        """The answer to a request for ``name``.

        Raises:
            Refusal: there is none.
            Stopped: the client has left.
        """
        ...

    def close(self) -> None:
        """End what runs."""
        ...


class Front(Protocol):
    """What answers some requests already, before all that answers is open."""

    last: str
    """The name that a browser asks for last of those that are answered here."""

    def answer(self, name: str) -> Answer | None:
        """The answer to a request for ``name``; None where it has to wait.

        Raises:
            Refusal: there is none.
        """
        ...


class Site:
    """One address on this machine, bound when it is made, and what is served there.

    Args:
        opening: opens what answers; called in a thread once the site runs, so that the address is there before. Where
            there is a ``first``, it is given what that gave.
        first: called before, in the same thread: opens what answers until all is open, or gives None. The rest is
            opened when a browser has all that is answered so, or asks for something else, and a second later at last:
            while libraries are loaded, answers wait up to half a second.
        host: an address of this machine; ``0.0.0.0`` for all of them.
        port: 0 for a free one.

    Raises:
        SourceError: starlette and uvicorn are missing, the port is taken, or the host is none of this machine's.
    """

    def __init__(
        self,
        opening: Callable[..., Content],
        *,
        first: Callable[[], Front | None] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        _require_libraries()
        self._opening, self._first = opening, first
        self._socket = _bound(host, port)
        self.host, self.port = host, self._socket.getsockname()[1]
        self._secret = secrets.token_urlsafe(24)
        self.url = f"http://{in_url('localhost' if is_wildcard(host) else host)}:{self.port}/{self._secret}/"
        self._front: Front | None = None
        self._content: Content | None = None
        self._error: BaseException | None = None
        self._begun: asyncio.Event | None = None
        self._opened: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted, self._closing = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None

    @property
    def exposed(self) -> bool:
        """Whether others than this machine reach it."""
        return not is_loopback(self.host)

    def run(self) -> None:
        """Serve until interrupted.

        Raises:
            Exception: what opening raised.
        """
        self._serve(_server(self))

    def _serve(self, server: "uvicorn.Server") -> None:
        self._server = server
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[self._socket])
        finally:
            self.close()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve from a thread of its own inside the block; the address."""
        server = _server(self)
        thread = threading.Thread(target=self._serve_quietly, args=(server,), daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            server.should_exit = True
            thread.join(_LONGEST_START)

    def _serve_quietly(self, server: "uvicorn.Server") -> None:
        # whoever asks is told what opening raised
        with contextlib.suppress(Exception):
            self._serve(server)

    def close(self) -> None:
        """Free the address and end what runs."""
        self._closing = True
        self._wanted.set()
        self._socket.close()
        if self._thread is not None:
            # an interpreter that ends while a thread imports torch may crash
            self._thread.join(_LONGEST_START)
        if self._content is not None:
            self._content.close()

    def app(self) -> Guard:
        """The ASGI app, guard and all; what answers is opened when it starts."""
        return Guard(_app(self), secret=self._secret, host=self.host, port=self.port)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Begin to open what answers."""
        self._begun, self._opened, self._loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()
        yield

    def _open(self) -> None:
        assert self._begun is not None and self._opened is not None  # noqa: S101, PT018
        try:
            if self._first is None:
                self._content = self._opening()
            else:
                self._front = self._first()
                self._tell(self._begun)
                if self._front is not None:
                    self._wanted.wait(_CALM)
                if self._closing:
                    return
                self._content = self._opening(self._front)
        except BaseException as error:  # noqa: BLE001  run() raises it
            self._error = error
        self._tell(self._begun)
        self._tell(self._opened)
        if self._error is not None and self._server is not None:
            self._server.should_exit = True

    def _tell(self, event: asyncio.Event) -> None:
        """Let those go on who wait for an event, from another thread than theirs."""
        assert self._loop is not None  # noqa: S101  made when the app starts
        # the loop may be gone, and with it all who waited
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(event.set)

    async def answer(self, request: "Request") -> "Response":
        """Answer a request that the guard let through."""
        from starlette.responses import JSONResponse, Response

        try:
            name = request.path_params["name"]
            found = await self._early(name, request)
            if found is None:
                content = await self._ready(request)
                found = await content.answer(name, _parameters(request), request.is_disconnected)
        except Refusal as refused:
            return JSONResponse({"error": refused.sentence}, refused.status)
        except Stopped:
            return JSONResponse({"error": "The server is ending."}, 503)
        return Response(found.body, media_type=found.kind)

    async def _early(self, name: str, request: "Request") -> Answer | None:
        """An answer that need not wait until all is open; None where there is none, or all is open."""
        assert self._begun is not None  # noqa: S101  made when the app starts
        await self._wait(self._begun, request)
        if self._front is None or self._content is not None or self._error is not None:
            return None
        _parameters(request)
        found = self._front.answer(name)
        if found is None or name == self._front.last:
            self._wanted.set()
        return found

    async def _wait(self, event: asyncio.Event, request: "Request") -> None:
        """Wait for an event.

        Raises:
            Stopped: the client has left, or the server is ending.
        """
        while not event.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), 0.2)
            ending = self._server is not None and self._server.should_exit
            if not event.is_set() and (ending or await request.is_disconnected()):
                raise Stopped

    async def _ready(self, request: "Request") -> Content:
        assert self._opened is not None  # noqa: S101  made when the app starts
        await self._wait(self._opened, request)
        if self._content is None:
            raise Refusal(500, str(self._error))
        return self._content


def _parameters(request: "Request") -> dict[str, str]:
    """The query's parameters, each named once."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in found:
            raise Refusal(400, f"The parameter {name[:40]!a} is given twice.")
        found[name] = value
    return found


def _app(site: Site) -> "Starlette":
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def broken(request: "Request", error: Exception) -> "Response":  # noqa: ARG001
        return JSONResponse({"error": "The server failed at this: its terminal says how."}, 500)

    routes = [Route("/{name:path}", site.answer)]
    return Starlette(routes=routes, exception_handlers={Exception: broken}, lifespan=lambda app: site.open())  # noqa: ARG005


def _server(site: Site) -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # who waits for an answer must not make the end wait
            if site._content is not None:
                site._content.close()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        site.app(), log_level="error", access_log=False, ws="none", server_header=False, lifespan="on",
        timeout_graceful_shutdown=_PATIENCE,
    )  # fmt: skip
    return Server(config)


def _require_libraries() -> None:
    import importlib.util

    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise SourceError("serving needs starlette and uvicorn: pip install 'multihead[view]' brings them.")


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket."""
    if not 0 <= port < 1 << 16:
        raise SourceError(f"port {port} is none: ports are 0 (a free one) to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise SourceError(f"there is no host {host!r} to serve at: leave --host out for this machine alone.") from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise SourceError(f"port {port} is taken: name another, or none for a free one.") from error
        raise SourceError(f"cannot serve at {host} port {port}: {error.strerror}.") from error
    return bound
