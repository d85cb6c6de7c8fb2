"""Near duplicates among pictures of low contrast that share their shading, and among icons."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import transferkit.data.duplicates as duplicates
from transferkit.data.decode import probe
from transferkit.data.duplicates import candidates, near_groups, similar_hashes

ICONS = Path(__file__).resolve().parents[2] / "data_samples/val"


def sheet_metal(seed: int) -> Image.Image:
    """The same shading and the same bright edge, and faint details of its own."""
    generator = np.random.default_rng(seed)
    faint = generator.normal(size=(14, 10)).astype(np.float32)
    details = np.asarray(Image.fromarray(faint).resize((150, 220), Image.Resampling.BICUBIC))
    across = np.linspace(-1, 1, 150)
    grey = 90 + 50 * np.cos(1.2 * across) + 60 * (np.abs(across - 0.8) < 0.06) + 4 * details
    grey = grey * (0.6 + 0.8 * generator.random()) + generator.normal(size=grey.shape) / 2
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


def icon(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def altered(image: Image.Image, way: int, generator: np.random.Generator) -> Image.Image:
    """Recoded, resized, cropped by 5 % or brightened."""
    width, height = image.size
    quality = int(generator.integers(60, 91)) if way == 0 else 92
    if way == 1:
        factor = generator.uniform(0.5, 1.5)
        image = image.resize((round(width * factor), round(height * factor)))
    if way == 2:
        left, top = (int(side * generator.uniform(0, 0.05)) for side in image.size)
        image = image.crop((left, top, left + round(0.95 * width), top + round(0.95 * height)))
    if way == 3:
        image = image.point(lambda value: min(255, round(value * 1.2)))
    image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> tuple[list[Path], list[int], list[int]]:
    """48 pictures, and a copy of each; files, numbers of the pictures, ways of the copies or -1."""
    folder, generator = tmp_path_factory.mktemp("near"), np.random.default_rng(0)
    images = [sheet_metal(seed) for seed in range(32)]
    images += [icon(path) for path in sorted(ICONS.glob("*/*.webp"))[::12][:16]]
    found: tuple[list[Path], list[int], list[int]] = ([], [], [])
    for number, image in enumerate(images):
        ways = ((-1, image), (number % 4, altered(image, number % 4, generator)))
        for way, picture in ways:
            picture.save(folder / f"{number} {way}.png")
            for column, value in zip(found, (folder / f"{number} {way}.png", number, way), strict=True):  # fmt: skip  # noqa: E501
                column.append(value)
    return found


def figures(pairs: set[tuple[int, int]], numbers: list[int]) -> tuple[float, float]:
    """Precision and recall of pairs of positions; a copy follows its picture."""
    right = sum(numbers[a] == numbers[b] for a, b in pairs)
    return right / max(1, len(pairs)), right / (len(numbers) / 2)


def test_copies_are_found_and_different_pictures_are_not(pictures):
    files, numbers, ways = pictures
    hashes = np.array([probe(file).dhash for file in files], dtype=np.uint64)
    # what the hashes alone say, narrow and wide
    precision, recall = figures(set(similar_hashes(hashes, 4)), numbers)
    assert precision < 0.9
    assert recall < 0.9
    precision, recall = figures(set(candidates(hashes)[0]), numbers)
    assert precision < 0.2
    assert recall >= 0.92
    seen = []
    digests = [str(n) for n in range(len(files))]
    groups, note = near_groups(files, digests, hashes, show=seen.append)
    pairs = {(a, b) for group in groups for n, a in enumerate(group) for b in group[n + 1 :]}
    precision, recall = figures(pairs, numbers)
    assert precision >= 0.95
    assert recall >= 0.9
    assert {ways[b] for _, b in pairs} == {0, 1, 2, 3}
    assert note == ""
    assert (seen[-1].done, seen[-1].total) == (len(seen), len(seen))


def test_nothing_is_read_where_no_hashes_are_similar(tmp_path):
    hashes = np.array([0, 2**64 - 1], dtype=np.uint64)
    seen = []
    gone = [tmp_path / "a.png", tmp_path / "b.png"]
    assert near_groups(gone, ["a", "b"], hashes, show=seen.append) == ([], "")
    assert seen == []


def test_of_too_many_similar_hashes_the_likeliest_pairs_are_taken(monkeypatch):
    close = np.array([0, 1, 3, 2**20 - 1], dtype=np.uint64)
    far = np.array([2**64 - 1, 2**64 - 1 - 0x3FF], dtype=np.uint64)
    hashes = np.concatenate([close, far])
    assert candidates(hashes) == ([(0, 1), (0, 2), (1, 2), (4, 5)], "")
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 3)
    pairs, note = candidates(hashes)
    assert pairs == [(0, 1), (0, 2), (1, 2)]
    assert note.startswith("near duplicates that are cropped may be missed: as very many are sim")
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 2)
    pairs, note = candidates(hashes)
    assert len(pairs) == 2
    assert note.startswith("near duplicates may be missed: ")
    assert note.endswith("only the 2 likeliest pairs were compared")
    monkeypatch.setattr(duplicates, "FEW", 5)
    monkeypatch.setattr(duplicates, "MAX_CANDIDATES", 9)
    pairs, note = candidates(hashes)
    assert pairs == [(0, 1), (0, 2), (1, 2)]
    assert "of so many pictures, only the 3 likeliest" in note
