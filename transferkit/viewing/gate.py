"""Checks of requests to the local server: only those of its own page are answered.

Any page in the browser can send requests to 127.0.0.1, and any host name can be made to resolve to
it (DNS rebinding). So the Host has to be the printed one, and uploads have to have the page's
Origin. Other users of the machine can connect, too: every request needs the printed token, in its
address or in a cookie.
Source: W3C, Fetch Metadata Request Headers; RFC 9110, section 7.2 (Host) and RFC 6454 (Origin).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from email.message import Message
from hmac import compare_digest

LOOPBACK = "127.0.0.1"
HTTP_PORT = 80
MAX_BYTES = 20_000_000
BODY_TYPE = "application/octet-stream"

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every response, beside its content security policy."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused. status: of HTTP."""

    status: int
    reason: str


def refuse(headers: Message, port: int) -> Refusal | None:
    """Return why a request of any kind is refused; None if it is not."""
    named = [host.lower() for host in headers.get_all("Host", [])]
    if len(named) != 1 or named[0] not in hosts(port):
        return Refusal(421, "this server answers only on the printed address")
    if headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return Refusal(403, "requests of other pages are not answered")
    return None


def refuse_upload(headers: Message, port: int) -> Refusal | None:
    """Return why an upload is refused; None if its body may be read."""
    if refusal := refuse(headers, port):
        return refusal
    if headers.get("Origin", "").lower() not in {f"http://{host}" for host in hosts(port)}:
        return Refusal(403, "only the page of this server may send anything")
    if headers.get("Content-Type", "") != BODY_TYPE:  # one that no form can send
        return Refusal(415, f"the body has to be {BODY_TYPE}")
    length = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or not (length.isascii() and length.isdigit()):
        return Refusal(411, "the request needs a Content-Length")
    if not 0 < int(length[:20]) <= MAX_BYTES:
        return Refusal(413, f"what is sent has 1 to {MAX_BYTES:,} bytes")
    return None


def hosts(port: int) -> set[str]:
    """Return the allowed Host values; browsers omit the default port."""
    names = (LOOPBACK, "localhost")
    return {f"{name}:{port}" for name in names} | (set(names) if port == HTTP_PORT else set())


def cookie_name(port: int) -> str:
    """Return the name of the cookie, with the port: servers of a machine share cookies."""
    return f"transferkit-{port}"


def has_cookie(headers: Message, port: int, token: str) -> bool:
    """Whether a request has the token in its cookie."""
    pairs = [pair.strip() for text in headers.get_all("Cookie", []) for pair in text.split(";")]
    return is_among(f"{cookie_name(port)}={token}", pairs)


def is_among(secret: str, texts: Iterable[str]) -> bool:
    """Whether a secret is among the texts, compared in constant time."""
    return any(compare_digest(secret.encode(), t.encode(errors="replace")) for t in texts)
