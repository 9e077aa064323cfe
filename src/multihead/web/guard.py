"""Who may read: those who know the secret, through the address that was bound, without writing anything.

A page on the web can make a browser ask servers on this machine, also under a name of its own that leads here (DNS
rebinding). So the first part of every path is a secret, the Host must be one of ours, and so must the Origin where the
browser says one.
"""

import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy of every answer."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
}
"""What every answer says."""


def is_wildcard(host: str) -> bool:
    """Whether a host stands for every address of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def in_url(host: str) -> str:
    """A host as it stands in an address: ``[::1]``."""
    return f"[{host}]" if ":" in host else host


class Guard:
    """Lets through to an app who may read, with the secret taken off the path; answers everyone else.

    Args:
        app: the ASGI app behind it.
        secret: the first part of every path.
        host: the bound host.
        port: the bound port.
    """

    def __init__(self, app: App, *, secret: str, host: str, port: int) -> None:
        self._app, self._secret = app, secret
        self._host, self._port = host, port
        names = {in_url(host), "localhost"}
        if is_wildcard(host):
            own = socket.gethostname().lower()
            names |= {own, f"{own}.local"}
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI asks it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        path = scope["path"].removeprefix("/")
        secret, slash, rest = path.partition("/")
        if refused is None and not hmac.compare_digest(secret.encode("utf-8", "replace"), self._secret.encode()):
            refused = 404, "There is nothing here: the address that was printed holds a secret, which this one lacks."
        if refused is None and scope["method"] not in ("GET", "HEAD"):
            refused = 405, f"Nothing can be written here: {scope['method'][:20]} is neither GET nor HEAD."
        if refused is not None:
            extra = {"allow": "GET, HEAD"} if refused[0] == 405 else {}
            await _answer(send, refused[0], refused[1], extra)
        elif not slash:
            await _answer(send, 308, "The address ends with a slash.", {"location": f"/{self._secret}/"})
        else:
            await self._app({**scope, "path": f"/{rest}", "root_path": ""}, receive, _with_headers(send))

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request is not for us."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0].decode("latin-1")):
            return 403, "The request is for another host than this server's."
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        if any(not self._is_ours(origin.removeprefix("http://")) or "://" not in origin for origin in origins):
            return 403, "The request comes from another site's page."
        return None

    def _is_ours(self, named: str) -> bool:
        """Whether ``host:port`` leads here by a name that nobody else can give away."""
        host, colon, port = named.lower().rpartition(":")
        if not colon or port.endswith("]"):
            host, port = named.lower(), "80"
        if port != str(self._port):
            return False
        return host in self._names or (is_wildcard(self._host) and _is_address(host))


def _is_address(host: str) -> bool:
    """Whether a host is a number, which no name server can lead elsewhere."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


async def _answer(send: Send, status: int, sentence: str, extra: dict[str, str]) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **extra}
    start = {"type": "http.response.start", "status": status, "headers": _encoded(headers)}
    send = _with_headers(send)
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    """The same, with what every answer says."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_encoded(HEADERS)]}
        await send(message)

    return sending


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
