"""Who may use the server and how often: host, origin, token and rate, checked before anything else.

Web pages of other sites can reach a server on this computer through the user's browser. So a request that says which
page it comes from (Origin) must come from this server's own page or an allowed one, and a loopback server answers only
to loopback names (a foreign name that resolves to 127.0.0.1 is an attack known as DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

SUBPROTOCOL = "handmesh"
"""Of WebSockets. Browsers cannot set headers there, so the token may come as a second protocol, ``token.<token>``."""
_TOKEN_PROTOCOL = "token."
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,}")
_API = "/v1/"

CLOSE_CODE = 4000
"""WebSockets that are refused are closed with this plus HTTP's status, among the codes that are free for programs."""

_REASON_BYTES = 123  # that a WebSocket's closing message has room for

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without port, means this computer only."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def as_origin(text: str) -> str:
    """An origin as browsers write it, from what an address bar shows. Raises ``ValueError`` where it is none."""
    parts = urlsplit(text.strip())
    if not parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"an origin is a page's scheme, host and port, such as http://localhost:8000, not {text!r}")
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual)}"


@dataclass
class Bucket:
    """Lets ``rate`` events a second through, after a burst of up to two seconds' worth, or of one event."""

    rate: float
    _most: float = field(init=False)
    _left: float = field(init=False)
    _time_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._left = self._most = max(2 * self.rate, 1.0)

    def take(self, now_s: float) -> float:
        """0 where the event may happen, else the seconds to wait for it."""
        self._left = min(self._most, self._left + (now_s - self._time_s) * self.rate)
        self._time_s = now_s
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        host: that the server binds.
        token: that every request to the API must bring, or None. Letters, digits and ``._~-``, at least 16.
        origins: further origins, such as ``http://localhost:8000``, whose pages may use the API.
        requests_per_s: of each address to the API.

    Raises ``ValueError`` for a host that others can reach without a token, and for a token or an origin that is none.
    """

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    origins: Sequence[str] = ()
    requests_per_s: float = 30.0

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise ValueError(f"others can reach a server on {self.host}: give it a token (--token), or bind 127.0.0.1")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise ValueError("a token needs at least 16 characters, of letters, digits and ._~- only")
        object.__setattr__(self, "origins", tuple(map(as_origin, self.origins)))

    def refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """HTTP status and reason why a request is refused, or None where it is welcome."""
        origin = headers.get("origin")
        try:
            host, page = urlsplit(f"//{headers.get('host', '')}"), urlsplit(origin or "")
        except ValueError:
            return 400, "the header Host or Origin is malformed"
        if is_loopback(self.host) and not is_loopback(host.hostname or ""):
            return 403, f"this server answers on this computer only, not as {host.hostname!r}"
        if origin is not None and page.netloc != host.netloc and origin not in self.origins:
            return 403, f"pages of {origin} may not use this server; allow them with --allow-origin"
        if self.token is None or not path.startswith(_API):
            return None
        given = _tokens(headers)
        if not given:
            return 401, "this server wants its token: send the header Authorization: Bearer TOKEN"
        if not any(hmac.compare_digest(text.encode(), self.token.encode()) for text in given):
            return 401, "the token is wrong: send the one that the server was started with"
        return None


def _tokens(headers: Headers) -> list[str]:
    """What a request brings as its token, by either way."""
    header = [headers["authorization"].removeprefix("Bearer ")] if "authorization" in headers else []
    protocols = [protocol.strip() for protocol in headers.get("sec-websocket-protocol", "").split(",")]
    return header + [name.removeprefix(_TOKEN_PROTOCOL) for name in protocols if name.startswith(_TOKEN_PROTOCOL)]


async def accept(socket: WebSocket) -> None:
    """Accept a WebSocket, with our protocol where it is offered."""
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None)


class Gate:
    """The outermost layer of the application: lets in what `Access` allows, and sets the headers that browsers heed."""

    def __init__(self, app: ASGIApp, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._access, self._clock = app, access, clock
        self._buckets: dict[str, Bucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._access.refusal(scope["path"], headers)
        counts = refusal is None or refusal[0] == 401  # a token may not be guessed at any rate
        wait_s = self._wait_s(scope) if counts and scope["path"].startswith(_API) else 0.0
        if wait_s > 0:
            refusal = 429, f"more than {self._access.requests_per_s:g} requests a second: wait {wait_s:.1f} s"
        if scope["type"] == "http":
            send = _with_headers(send)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, reason = refusal
        if scope["type"] == "websocket":
            socket = WebSocket(scope, receive, send)
            await accept(socket)  # a handshake that is refused cannot say why
            await socket.close(CLOSE_CODE + status, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))
            return
        extra = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": f"{int(wait_s) + 1}"}}
        await JSONResponse({"detail": reason}, status, extra.get(status))(scope, receive, send)

    def _wait_s(self, scope: Scope) -> float:
        address = scope["client"][0] if scope.get("client") else ""
        if address not in self._buckets and len(self._buckets) >= 1000:
            self._buckets.clear()
        bucket = self._buckets.setdefault(address, Bucket(self._access.requests_per_s))
        return bucket.take(self._clock())


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
