"""Runs the server: binds, says where it is, and lets camera, threads and port go at its end."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from handmesh.server.access import Access

_OPEN_CONNECTIONS_S = 3  # that streams have at the end to finish


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate and its key, for HTTPS: browsers lend a camera to localhost or over HTTPS only."""

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key):
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}: HTTPS needs a certificate and its key, both as .pem")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host`` (name or address) and ``port`` (0: any that is free).

    Raises ``ValueError`` for a number that no port has, and ``OSError``.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"a port must be a number from 0 to 65535, not {port}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}; try another --port") from error


def page_url(listening: socket.socket, access: Access, https: bool) -> str:
    """Where the page is, with the token after the #, which browsers keep to themselves."""
    host = _own_address(listening.family) if access.host in ("0.0.0.0", "::") else access.host
    host = f"[{host}]" if ":" in host else host
    token = f"#token={access.token}" if access.token else ""
    return f"{'https' if https else 'http'}://{host}:{listening.getsockname()[1]}/{token}"


def _own_address(family: int) -> str:
    """By which others of the network reach this computer, or where there is no network its name."""
    elsewhere = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # of nobody, for examples (RFC 3849, 5737)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((elsewhere, 9))  # sends nothing: the system chooses the way that packets would take
        except OSError:
            return socket.gethostname()
        return probe.getsockname()[0]


def run(
    app: FastAPI,
    listening: socket.socket,
    *,
    certificate: Certificate | None = None,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP (a closed terminal), then end streams and the application.

    Calls ``started`` when it is ready.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=app.state.service.limits.picture_bytes + 1024,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=_OPEN_CONNECTIONS_S,
        server_header=False,
        ssl_certfile=certificate and certificate.certificate,
        ssl_keyfile=certificate and str(certificate.key),
    )
    server = _Server(config, started)
    hang_up = getattr(signal, "SIGHUP", None)  # uvicorn knows the other two; Windows has none
    if hang_up is not None and signal.getsignal(hang_up) != signal.SIG_IGN:  # as under nohup
        signal.signal(hang_up, server.handle_exit)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends in order, and then raises the signal again
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
