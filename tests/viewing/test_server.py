import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from transferkit.errors import UserError
from transferkit.viewing import server as viewing_server
from transferkit.viewing.server import Handler, Page, Server, open_server

PAGES = {"/": Page("<p>hello", "default-src 'none'")}


def answer(picture: bytes) -> dict[str, Any]:
    if picture == b"bad":
        raise UserError("this picture cannot be read: truncated")
    if picture == b"bug":
        raise RuntimeError("secret path /home/me")
    return {"size": len(picture)}


@pytest.fixture
def failures() -> list[Exception]:
    return []


@pytest.fixture
def server(failures: list[Exception]) -> Iterator[Server]:
    with open_server(0, PAGES, {"/predict": answer}, failures.append) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


Ask = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def ask(server: Server) -> Ask:
    def send(method: str, path: str, body: bytes = b"", **more: str) -> Any:
        own = f"127.0.0.1:{server.server_port}"
        kind = {"Content-Type": "application/octet-stream", "Origin": f"http://{own}"}
        cookie = {"Cookie": f"a=b; transferkit-{server.server_port}={server.token}"}
        wanted = {"Host": own, **cookie, **(kind if method == "POST" else {}), **more}
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request(method, path, body or None, wanted)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, dict(response.getheaders()), text

    return send


def test_it_listens_on_the_loopback_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/?token={server.token}"


def test_who_has_not_the_token_is_given_nothing(ask: Ask, server: Server) -> None:
    others = ("", f"transferkit-{server.server_port}=wrong", f"transferkit-1={server.token}")
    for cookie in others:
        for found in (ask("GET", "/", Cookie=cookie), ask("POST", "/predict", b"a", Cookie=cookie)):
            assert (found[0], "hello" in found[2]) == (403, False)
            assert server.token not in str(found)
    for wrong in ("", "wrong", server.token[:-1], f"{server.token}x"):
        assert ask("GET", f"/?token={wrong}", Cookie="")[0] == 403


def test_a_token_in_the_address_moves_into_a_cookie(ask: Ask, server: Server) -> None:
    status, headers, text = ask("GET", f"/?token={server.token}", Cookie="")
    assert (status, headers["Location"], text) == (303, "/", "")
    cookie, *rest = headers["Set-Cookie"].split("; ")
    assert rest == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert ask("GET", "/", Cookie=cookie)[2] == "<p>hello"
    assert ask("POST", f"/predict?token={server.token}", b"abc", Cookie="")[0] == 200
    # nobody is sent elsewhere
    assert ask("GET", f"//evil.example?token={server.token}", Cookie="")[0] == 404


def test_what_the_browser_is_started_with_opens_the_page_once(ask: Ask, server: Server) -> None:
    once = server.address_once().removeprefix(server.origin)
    assert server.token not in once
    assert [ask("GET", once, Cookie="")[0] for _ in range(2)] == [303, 403]


def test_headers_alone_are_given_without_the_page(ask: Ask) -> None:
    page, head = ask("GET", "/"), ask("HEAD", "/")
    assert head == (200, {**page[1], "Date": head[1]["Date"]}, "")
    assert ask("HEAD", "/", Cookie="")[0] == 403


def test_slow_strangers_keep_nobody_out(ask: Ask, server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(80)]
    for connection in slow:
        connection.sendall(b"GET / HT")
    assert [ask("GET", "/")[0] for _ in range(20)] == [200] * 20
    for connection in slow:
        connection.close()


def test_a_request_has_to_arrive_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that goes on arriving, byte by byte: what is waited for is the whole of it."""
    monkeypatch.setattr(Handler, "timeout", 1000.0)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nA: ")
        monkeypatch.setattr(viewing_server, "ARRIVAL_S", 0.0)
        assert connection.recv(100) == b""


def test_every_answer_has_the_headers(ask: Ask) -> None:
    for found in (ask("GET", "/"), ask("GET", "/none"), ask("POST", "/predict", b"abc")):
        assert found[1]["X-Content-Type-Options"] == "nosniff"
        assert found[1]["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in found[1]["Content-Security-Policy"]
        assert not any(name.startswith("Access-Control") for name in found[1])
    assert ask("GET", "/")[2] == "<p>hello"


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "//etc/passwd", "/report/../..", "/%2e%2e/x", "/?a", "/model.json"],
)
def test_no_path_leads_to_a_file(ask: Ask, path: str) -> None:
    assert ask("GET", path)[0] == 404
    assert ask("POST", path, b"abc")[0] == 404


def test_pictures_are_answered(ask: Ask, failures: list[Exception]) -> None:
    assert json.loads(ask("POST", "/predict", b"abc")[2]) == {"size": 3}
    status, _, text = ask("POST", "/predict", b"bad")
    assert (status, json.loads(text)) == (422, {"error": "this picture cannot be read: truncated"})
    status, _, text = ask("POST", "/predict", b"bug")
    assert status == 500
    assert "secret" not in text
    assert [str(error) for error in failures] == ["secret path /home/me"]
    assert ask("POST", "/predict", b"abc")[0] == 200  # it goes on


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "<script>"])
def test_other_methods_are_refused(ask: Ask, method: str) -> None:
    status, _, text = ask(method, "/")
    assert status == 501
    assert "<script>" not in text


def test_requests_of_other_pages_are_refused(ask: Ask) -> None:
    assert ask("GET", "/", Host="evil.example")[0] == 421
    assert ask("POST", "/predict", b"abc", Origin="http://evil.example")[0] == 403


def test_what_does_not_arrive_is_given_up(server: Server) -> None:
    own = f"127.0.0.1:{server.server_port}"
    lines = (
        *("POST /predict HTTP/1.1", f"Host: {own}", f"Origin: http://{own}"),
        f"Cookie: transferkit-{server.server_port}={server.token}",
        *("Content-Type: application/octet-stream", "Content-Length: 10", "", "abc"),
    )
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode())
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).startswith(b"HTTP/1.0 408")


def test_many_at_once_are_all_answered(ask: Ask) -> None:
    with ThreadPoolExecutor(8) as pool:
        sizes = range(1, 81)
        found = list(pool.map(lambda size: ask("POST", "/predict", b"x" * size), sizes))
    assert [json.loads(text)["size"] for _, _, text in found] == list(sizes)


def test_a_port_in_use_is_refused(server: Server) -> None:
    with pytest.raises(UserError, match="--port") as refused:
        open_server(server.server_port, PAGES, {}, lambda error: None)
    assert refused.value.exit_code == 2
