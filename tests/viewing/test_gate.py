from email.message import Message

import pytest

from transferkit.viewing.gate import MAX_BYTES, refuse, refuse_upload

PORT = 8000
PAGE = {"Host": f"127.0.0.1:{PORT}"}
UPLOAD = {
    **PAGE,
    "Origin": f"http://127.0.0.1:{PORT}",
    "Content-Type": "application/octet-stream",
    "Content-Length": "10",
}


def headers(given: dict[str, str | None]) -> Message:
    made = Message()
    for name, value in given.items():
        if value is not None:
            made[name] = value
    return made


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({}, None),
        ({"Host": f"LOCALHOST:{PORT}"}, None),
        ({"Sec-Fetch-Site": "none"}, None),  # typed into the address bar
        ({"Sec-Fetch-Site": "same-origin"}, None),
        ({"Host": None}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": f"127.0.0.1:{PORT + 1}"}, 421),
        ({"Host": f"evil.example:{PORT}"}, 421),  # a name that was made to point here
        ({"Host": f"127.0.0.1:{PORT}.evil.example"}, 421),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
    ],
)
def test_pages_are_given_to_their_own_address(
    changed: dict[str, str | None], status: int | None
) -> None:
    for check, usual in ((refuse, PAGE), (refuse_upload, UPLOAD)):
        if "Host" in changed and check is refuse_upload and status is None:
            changed = {**changed, "Origin": f"http://localhost:{PORT}"}
        refusal = check(headers(usual | changed), PORT)
        assert (refusal and refusal.status) == status


@pytest.mark.parametrize(("port", "status"), [(80, None), (8000, 421)])
def test_browsers_leave_the_usual_port_out(port: int, status: int | None) -> None:
    given = headers(UPLOAD | {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"})
    for check in (refuse, refuse_upload):
        refusal = check(given, port)
        assert (refusal and refusal.status) == status


def test_two_hosts_are_none() -> None:
    given = headers(PAGE)
    given["Host"] = "evil.example"
    assert refuse(given, PORT) is not None


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Origin": None}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": f"https://127.0.0.1:{PORT}"}, 403),
        ({"Origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"Content-Type": "text/plain"}, 415),  # what a form may send across sites
        ({"Content-Type": "multipart/form-data"}, 415),
        ({"Content-Length": None}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "1e3"}, 411),
        ({"Content-Length": "٣"}, 411),
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "0"}, 413),
        ({"Content-Length": str(MAX_BYTES)}, None),
        ({"Content-Length": str(MAX_BYTES + 1)}, 413),
        ({"Content-Length": "9" * 5000}, 413),
    ],
)
def test_pictures_are_taken_from_the_page_alone(
    changed: dict[str, str | None], status: int | None
) -> None:
    refusal = refuse_upload(headers(UPLOAD | changed), PORT)
    assert (refusal and refusal.status) == status
