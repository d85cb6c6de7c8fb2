import io
import itertools
import json
import os
import random
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from transferkit.config import (
    Augmentation,
    BackboneOptions,
    Cache,
    Config,
    Data,
    Device,
    HeadOptions,
    Pretraining,
    Stage,
    Training,
)
from transferkit.stopping import Stop
from transferkit.training import fabric as freed_memory

TALLY = "TRANSFERKIT_TEST_TALLY"
"""Names the file that the tests of all worker processes append their rows to."""

COLOURS = {"disc": (200, 60, 50), "square": (60, 170, 70), "stripes": (70, 90, 200)}


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        number, path = tempfile.mkstemp(prefix="transferkit-tally-", suffix=".jsonl")
        os.close(number)
        os.environ[TALLY] = path  # the workers of pytest-xdist inherit it
        config.add_cleanup(lambda: Path(path).unlink(missing_ok=True))


@pytest.fixture(autouse=True, scope="session")
def _freed_memory_goes_back() -> Iterator[None]:
    """A test that looks at memory must not find what others have left in the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freed_memory, "ctypes", SimpleNamespace(CDLL=lambda name: object()))
        yield


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was attacked how often and what withstood, summed over rows of one name."""
    rows = [json.loads(line) for line in Path(os.environ[TALLY]).read_text().splitlines()]
    if not rows:
        return
    tried, held, lost = (Counter[str]() for _ in range(3))
    for row in rows:
        tried[row["what"]] += row["tried"]
        held[row["what"]] += row["held"]
        lost[row["what"]] += row["lost"]
    terminalreporter.section("attacks")
    terminalreporter.write_line(f"{'what':<40}{'tried':>10}{'withstood':>12}{'bytes lost':>12}")
    for what in [*sorted(tried), "all"]:
        if what == "all":
            sums = (tried.total(), held.total(), lost.total())
        else:
            sums = (tried[what], held[what], lost[what])
        terminalreporter.write_line(f"{what:<40}{sums[0]:>10,}{sums[1]:>12,}{sums[2]:>12,}")


@pytest.fixture
def tally() -> Callable[..., None]:
    """Return a call that adds a row to the table at the end: tally("kill -9", tried=9, held=9)."""

    def add(what: str, *, tried: int, held: int, lost: int = 0) -> None:
        row = {"what": what, "tried": tried, "held": held, "lost": lost}
        with open(os.environ[TALLY], "a") as file:
            file.write(json.dumps(row) + "\n")

    return add


@pytest.fixture
def stopped_after() -> Callable[..., AbstractContextManager[None]]:
    """Return a context in which a training loop is asked to stop after so many steps of a run."""

    @contextmanager
    def make(steps: int, loop: ModuleType) -> Iterator[None]:
        counted = itertools.count(1)

        def is_time(stop: Stop) -> bool:
            stop.asked = next(counted) == steps
            return stop.asked

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "is_time", is_time)
            yield

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder is never touched."""
    monkeypatch.setenv("TRANSFERKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    """Seeded, so that a test which draws without a seed draws the same every time."""
    random.seed(0)
    np.random.seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def draw(kind: str, generator: np.random.Generator, side: int = 48) -> Image.Image:
    """One small picture: a shape of a colour with its place, size and shade at random, noisy."""
    image = Image.new("RGB", (side, side), tuple(generator.integers(90, 160, 3).tolist()))
    shade = tuple(int(c) + int(generator.integers(-60, 60)) for c in COLOURS[kind])
    pen = ImageDraw.Draw(image)
    size, left, top = (int(v) for v in generator.integers(side // 4, side // 2, 3))
    box = (left, top, left + size, top + size)
    if kind == "disc":
        pen.ellipse(box, fill=shade)
    elif kind == "square":
        pen.rectangle(box, fill=shade)
    else:
        for offset in range(0, side, 8):
            pen.line((0, offset, side, offset), fill=shade, width=3)
    noise = generator.normal(0, 12, (side, side, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes with 7, 6 and 5 training pictures and 4 validation pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for k, kind in enumerate(COLOURS):
        for split, count in (("train", 7 - k), ("val", 4)):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                draw(kind, generator).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def draw_strips() -> Callable[..., Path]:
    """Draw two classes of pictures below a folder that differ at the left end alone.

    size: (width, height). edge: pixels at that end. counts: of training and of all pictures.
    """

    def draw_(root: Path, size: tuple[int, int], edge: int, counts: tuple[int, int]) -> Path:
        generator = np.random.default_rng(0)
        for label, name in enumerate(("dark", "light")):
            for number in range(counts[1]):
                pixels = generator.integers(90, 160, (size[1], size[0], 3), dtype=np.uint8)
                pixels[:, :edge] = 40 + 180 * label
                file = root / ("train" if number < counts[0] else "val") / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
        return root

    return draw_


@pytest.fixture(scope="session")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 pictures of three kinds and several sizes, in nested folders that say nothing."""
    root = tmp_path_factory.mktemp("unlabeled")
    generator = np.random.default_rng(1)
    for number in range(27):
        folder = root / ("deep/er" if number % 2 else "flat")
        folder.mkdir(parents=True, exist_ok=True)
        draw(list(COLOURS)[number % 3], generator, 40 + number).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def pack() -> Callable[[Path, Mapping[str, bytes]], Path]:
    """Return a function that writes a tar archive of members, name to content."""

    def make(archive: Path, members: Mapping[str, bytes]) -> Path:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return archive

    return make


@pytest.fixture
def pretraining_config(unlabeled: Path, pictures: Path) -> Callable[..., Config]:
    """Return configurations of two epochs in batches of 8, on a tiny backbone at 32 px."""

    def make(backbone: str = "test_efficientnet", **options: object) -> Config:
        wanted: Any = {"epochs": 2, "batch_size": 8, **options}
        labelled = wanted.get("method") == "supervised"
        wanted |= {"aux": pictures} if labelled else {}
        network = BackboneOptions(name=backbone, image_size=32)
        if backbone == "test_vit":
            network = replace(network, image_size=64)
        if backbone == "mlp":
            network = replace(network, image_size=16, depth=2, width=24, activation="logistic")
        return Config(
            data=Data(path=None if labelled else unlabeled),
            backbone=network,
            device=Device(accelerator="cpu"),
            pretraining=Pretraining(**wanted),
        )

    return make


@pytest.fixture(scope="session")
def tiny_config(pictures: Path) -> Config:
    """A run of three stages that takes a second: 1 block group, 3, all; caches in float32."""
    return Config(
        data=Data(path=pictures),
        backbone=BackboneOptions(name="test_efficientnet", pretrained=False, image_size=32),
        head=HeadOptions(dropout=(0.0,)),
        augment=Augmentation(level="light", views=1),
        cache=Cache(dtype="float32"),
        training=Training(batch_size=6, lr=1e-2, unfrozen_lr=5e-3, block_decay=0.5),
        device=Device(accelerator="cpu", engine="torch"),
        stages=(Stage(1, 2), Stage(3, 2), Stage("all", 2)),
    )


@pytest.fixture
def with_stages(tiny_config: Config) -> Callable[..., Config]:
    """Return the tiny configuration with other stages."""
    return lambda *stages: replace(tiny_config, stages=stages)
