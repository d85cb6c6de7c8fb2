"""Very many files, and several people at once: nothing lost, no error, memory that stays.

TRANSFERKIT_LOAD_FILES (100,000) and TRANSFERKIT_LOAD_SECONDS (60) ask for more.
"""

import csv
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

FILES = int(os.environ.get("TRANSFERKIT_LOAD_FILES", "100000"))
SECONDS = float(os.environ.get("TRANSFERKIT_LOAD_SECONDS", "60"))
CLIENTS = 8
MOST_BYTES_A_FILE = 4_000
"""Of memory: names, digests and sizes are kept for each picture, the picture is not."""
MOST_GROWTH_MB = 40.0
PER_SOURCE = 50_000  # file systems allow 65,000 links to a file

Tally = Callable[..., None]

MEASURED = (
    "import resource, sys; from transferkit.cli import main\n"
    "try:\n    main()\n"
    "finally:\n"
    "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    "    print(f'peak {peak}', file=sys.stderr)\n"
)
LISTENING = (  # a shell that starts the tests in the background has Ctrl-C ignored: listen again
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from transferkit.cli import main; main()"
)


def linked(folder: Path, count: int) -> Path:
    """Make so many links to tiny pictures of two classes; one in ten is for validation."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(-(-count // PER_SOURCE)):
        values = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder.with_name(f"{folder.name}-source-{number}.png"))
    for number in range(count):
        split = "val" if number % 20 < 2 else "train"
        part = folder / split / f"class{number % 2}" / f"{number // 2000:04d}"
        if number % 2000 < 4:
            part.mkdir(parents=True, exist_ok=True)
        source = folder.with_name(f"{folder.name}-source-{number // PER_SOURCE}.png")
        os.link(source, part / f"{number:07d}.png")
    return folder


def peak_bytes(*arguments: object) -> int:
    """Run a command and return the most memory that it held."""
    words = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return 1024 * int(done.stderr.rsplit("peak ", 1)[1])


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return linked(tmp_path / "few", FILES // 10)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return linked(tmp_path / "many", FILES)


@pytest.mark.slow
def test_very_many_files_are_inspected(few: Path, many: Path, tally: Tally) -> None:
    peaks = [peak_bytes("inspect", data, "-o", f"{data.name}.json") for data in (few, many)]
    found = json.loads(Path("many.json").read_text())
    assert found["pictures"] == FILES
    assert found["counts"]["class1"] == {"train": 9 * FILES // 20, "val": FILES // 20, "test": 0}
    assert (peaks[1] - peaks[0]) / (FILES - FILES // 10) < MOST_BYTES_A_FILE
    tally("files inspected", tried=FILES, held=found["pictures"])


@pytest.mark.slow
def test_very_many_files_are_predicted(few: Path, many: Path, run: Path, tally: Tally) -> None:
    peaks = [peak_bytes("predict", run, data, "-o", f"{data.name}.csv") for data in (few, many)]
    with open("many.csv", newline="") as file:
        names = [Path(row["path"]).name for row in csv.DictReader(file) if not row["error"]]
    assert sorted(names) == [f"{number:07d}.png" for number in range(FILES)]
    assert (peaks[1] - peaks[0]) / (FILES - FILES // 10) < MOST_BYTES_A_FILE
    tally("files predicted", tried=FILES, held=len(names))


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def ask(address: str, picture: bytes) -> bool:
    """Send a picture, then load a page; return whether both went well."""
    found = urlsplit(address)
    cookie = {"Cookie": f"transferkit-{found.port}={found.query.removeprefix('token=')}"}
    kind = {"Content-Type": "application/octet-stream", "Origin": f"http://{found.netloc}"}
    for words in (("POST", "/predict", picture, kind | cookie), ("GET", "/", None, cookie)):
        connection = http.client.HTTPConnection(found.netloc, timeout=60)
        connection.request(*words)  # type: ignore[arg-type]
        response = connection.getresponse()
        body = response.read()
        connection.close()
        if response.status != 200 or (words[0] == "POST" and not json.loads(body)["answers"]):
            return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="memory is read from /proc")
def test_a_page_answers_many_at_once_in_flat_memory(
    run: Path, pictures: Path, tally: Tally
) -> None:
    words = [sys.executable, "-c", LISTENING, "view", str(run), "--no-browser", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    files = sorted((pictures / "val").rglob("*.png"))
    sizes: list[float] = []
    ends = threading.Event()
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]

        def client(number: int) -> tuple[int, int]:
            tried = held = 0
            while not ends.is_set():
                held += ask(address, files[(number + tried) % len(files)].read_bytes())
                tried += 1
            return tried, held

        with ThreadPoolExecutor(CLIENTS) as pool:
            counts = [pool.submit(client, number) for number in range(CLIENTS)]
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                time.sleep(SECONDS / 60)
                sizes.append(resident_mb(process.pid))
            ends.set()
            tried, held = map(sum, zip(*(count.result() for count in counts), strict=True))
    finally:
        ends.set()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    tally("questions to view, 8 at once", tried=tried, held=held)
    assert tried == held > CLIENTS
    assert process.returncode == 0
    assert "failed" not in err
    third = len(sizes) // 3  # while it warms up, memory may grow
    assert max(sizes[2 * third :]) - max(sizes[:third]) < MOST_GROWTH_MB, sizes
