"""The server of `view`: pages and answers to what they send, on the loopback address only.

No path of a request leads to a file: pages are rendered beforehand. Clients without the token may
connect, but cannot block others: a request has to arrive within a few seconds, and beyond
`MOST_CONNECTIONS` the oldest such connection is closed.
"""

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transferkit.errors import UserError, usage_error
from transferkit.files.strict_json import strict_json
from transferkit.viewing.gate import (
    HEADERS,
    LOOPBACK,
    Refusal,
    cookie_name,
    has_cookie,
    is_among,
    refuse,
    refuse_upload,
)

MOST_CONNECTIONS = 64
MOST_UPLOADS = 16  # at once, each in memory
ARRIVAL_S = 10.0  # for a request with its token, without the picture
ROOM_S = 1.0  # for a closed connection to end
IDLE_S = 20.0  # timeout without data
UPLOAD_S = 60.0  # for a whole picture
PIECE = 1 << 16
TOKEN = "?token="
NO_MORE: Mapping[str, str] = {}
Answer = Callable[[bytes], Mapping[str, Any]]
"""Content of a request -> JSON content; a UserError is told to the page."""
JSON_POLICY = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Page:
    """An HTML page. policy: its content security policy."""

    text: str
    policy: str


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1. pages: path -> page. answers: path -> what answers a sent body."""

    daemon_threads = True
    allow_reuse_address = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self,
        port: int,
        pages: Mapping[str, Page],
        answers: Mapping[str, Answer],
        failed: Callable[[Exception], None],
    ) -> None:
        super().__init__((LOOPBACK, port), Handler)
        self.pages, self.answers, self.failed = pages, answers, failed
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.uploads = threading.BoundedSemaphore(MOST_UPLOADS)
        self.token = secrets.token_urlsafe()
        self.tickets: set[str] = set()  # tokens that open the page once
        self.strangers: dict[Any, float] = {}  # connection without the token -> start time

    @property
    def origin(self) -> str:
        """The server's address, without the token."""
        return f"http://{LOOPBACK}:{self.server_port}"

    @property
    def address(self) -> str:
        """The address of the page, for the person who started the server."""
        return f"{self.origin}/?token={self.token}"

    def address_once(self) -> str:
        """Return an address that works once: other users can see a browser's arguments."""
        ticket = secrets.token_urlsafe()
        self.tickets.add(ticket)
        return f"{self.origin}/?token={ticket}"

    def opens(self, text: str) -> bool:
        """Whether a text is the token, or a ticket, which is then spent."""
        ticket = next((ticket for ticket in tuple(self.tickets) if is_among(ticket, [text])), "")
        self.tickets.discard(ticket)
        return bool(ticket) or is_among(self.token, [text])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection; if there are too many, close the oldest stranger."""
        if not self.connections.acquire(blocking=False):
            self.hang_up(tuple(self.strangers)[:1])
            if not self.connections.acquire(timeout=ROOM_S):
                self.shutdown_request(request)
                return
        self.strangers[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.strangers.pop(request, None)
            self.connections.release()

    def service_actions(self) -> None:
        """Close connections whose request is late; called several times a second."""
        late = time.monotonic() - ARRIVAL_S
        self.hang_up(tuple(one for one, came in tuple(self.strangers.items()) if came < late))

    def hang_up(self, requests: tuple[Any, ...]) -> None:
        """Shut connections down: their threads read end of file."""
        for request in requests:
            self.strangers.pop(request, None)
            with suppress(OSError):  # it is closed already
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore broken connections."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request; HTTP/1.0, so that every connection ends with it."""

    server: Server
    server_version = "transferkit"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Send a page; a token in its address moves into a cookie."""
        refusal = refuse(self.headers, self.server.server_port) or self.refuse_stranger()
        if refusal:
            return self.refuse(refusal)
        path, in_address, _ = self.path.partition(TOKEN)
        page = self.server.pages.get(path)
        if page is None:
            return self.refuse(Refusal(404, "there is nothing here"))
        if not in_address:
            return self.give(200, "text/html; charset=utf-8", page.text, page.policy)
        cookie = f"{cookie_name(self.server.server_port)}={self.server.token}"
        moved = {"Location": path, "Set-Cookie": f"{cookie}; Path=/; HttpOnly; SameSite=Strict"}
        self.give(303, "text/plain", "", JSON_POLICY, moved)

    def do_HEAD(self) -> None:
        """Send a page's headers."""
        self.do_GET()

    def refuse_stranger(self) -> Refusal | None:
        """Return why a request without the token is refused; with it, the connection stays."""
        _, in_address, given = self.path.partition(TOKEN)
        port, token = self.server.server_port, self.server.token
        if not (self.server.opens(given) if in_address else has_cookie(self.headers, port, token)):
            return Refusal(403, "open the address that transferkit view printed, with its token")
        self.server.strangers.pop(self.connection, None)
        return None

    def do_POST(self) -> None:
        """Answer what a page sends."""
        refusal = refuse_upload(self.headers, self.server.server_port) or self.refuse_stranger()
        if refusal:
            return self.refuse(refusal)
        answer = self.server.answers.get(self.path.partition(TOKEN)[0])
        if answer is None:
            return self.refuse(Refusal(404, "there is nothing here"))
        if not self.server.uploads.acquire(blocking=False):
            return self.refuse(Refusal(503, "too many requests at once: try again"))
        try:
            body = self.body(int(self.headers["Content-Length"]))
            if body is None:
                return self.refuse(Refusal(408, "it did not arrive whole"))
            self.give_answer(answer, body)
        finally:
            self.server.uploads.release()

    def body(self, length: int) -> bytes | None:
        """Read the whole body; None if it is incomplete or late."""
        pieces, missing, until = [], length, time.monotonic() + UPLOAD_S
        while missing:
            try:
                piece = self.rfile.read1(min(PIECE, missing))
            except OSError:  # also a timeout
                return None
            if not piece or time.monotonic() > until:
                return None
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def give_answer(self, answer: Answer, body: bytes) -> None:
        """Send an answer, or the reason for there being none."""
        try:
            text = strict_json(dict(answer(body)))
        except UserError as error:
            return self.refuse(Refusal(422, error.what))
        except Exception as error:  # the server goes on
            self.server.failed(error)
            return self.refuse(Refusal(500, "this could not be answered"))
        self.give(200, "application/json", text, JSON_POLICY)

    def refuse(self, refusal: Refusal) -> None:
        """Send an error."""
        text = json.dumps({"error": refusal.reason})
        self.give(refusal.status, "application/json", text, JSON_POLICY)

    def give(
        self, status: int, kind: str, text: str, policy: str, more: Mapping[str, str] = NO_MORE
    ) -> None:
        """Send a response with `HEADERS` and more."""
        data = text.encode(errors="backslashreplace")
        self.send_response(status)
        for name, value in {**HEADERS, **more}.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", policy)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what `http.server` refuses, without echoing the request."""
        self.refuse(Refusal(code, "invalid request"))

    def log_message(self, format: str, *args: Any) -> None:
        """Write no access log."""


def open_server(
    port: int,
    pages: Mapping[str, Page],
    answers: Mapping[str, Answer],
    failed: Callable[[Exception], None],
) -> Server:
    """Open a server. port: 0 takes a free one. Raises a usage error for a port in use."""
    try:
        return Server(port, pages, answers, failed)
    except OSError as error:
        raise usage_error(
            f"--port {port}: {error.strerror or error}", remedy="leave --port out for a free one"
        ) from None
