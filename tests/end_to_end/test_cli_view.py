import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

Cli = Callable[..., Any]
LISTENING = (  # a shell that starts the tests in the background has Ctrl-C ignored: listen again
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from transferkit.cli import main; main()"
)


def post(address: str, picture: bytes) -> tuple[int, Any]:
    found = urlsplit(address)
    connection = http.client.HTTPConnection(found.netloc, timeout=120)
    kind = {"Content-Type": "application/octet-stream", "Origin": f"http://{found.netloc}"}
    connection.request("POST", f"/predict?{found.query}", picture, kind)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_picture_is_answered_as_predict_answers_it(
    run: Path, pictures: Path, cli: Cli, tmp_path: Path
) -> None:
    picture = pictures / "val" / "disc" / "0.png"
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, "view", str(run), "--no-browser", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        status, found = post(address, picture.read_bytes())
        unreadable = post(address, b"\xff\xd8\xff")
        stranger = post(address.partition("?")[0], picture.read_bytes())
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err
    assert (status, stranger[0]) == (200, 403)
    row = cli("predict", run, picture, "--mc-dropout", "30", "--json").json["predictions"][0]
    first = found["answers"][0]
    assert first["label"] == row["label"]
    assert first["probability"] == pytest.approx(row["probability"], abs=1e-5)
    assert first["std"] == pytest.approx(row["std"], abs=1e-5)
    assert {f["name"] for f in found["figures"]} >= {"entropy", "mutual information", "ood"}
    assert found["samples"] == 30
    assert found["image"].startswith("data:image/jpeg;base64,")
    assert unreadable[0] == 422
    assert "cannot be read" in unreadable[1]["error"]


def test_what_cannot_be_viewed_is_refused(run: Path, cli: Cli) -> None:
    Path("model.onnx").write_bytes(b"x")
    refused = cli("view", "model.onnx", "--no-browser")
    assert refused.code == 2
    assert "view needs a run folder" in refused.message[0]
    assert cli("view", "nothing", "--no-browser").code == 1
    refused = cli("view", run, "--no-browser", "--set", "predict.select=3")
    assert refused.code == 2
    assert "has no effect on view" in refused.message[0]
    assert cli("view", run, "--no-browser", "--port", "70000").code == 2
