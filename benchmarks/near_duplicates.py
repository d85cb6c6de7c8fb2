"""How many altered copies of pictures are found, and how many different pictures are taken for one.

    python benchmarks/near_duplicates.py FOLDER ... [--every 4] [--series 200 2500]
        [--sheet FILE] [--features]

Every fourth picture of a folder is altered in five ways: recoded as JPEG of quality 60 to 90,
resized by 0.5 to 1.5, cropped by 5 % at a random place, brightened by up to 20 %, and all of these.
Recall is the share of the copies that are found as copies of their picture. Precision counts as
false whatever is found between different pictures, originals or copies. --series A B: pictures
whose names end in numbers that differ by at most A, or within a class by at most B, show one object
and count neither way. --sheet: a picture of the pairs that count as false, to be judged by eye.
--features: what pooled features of several depths of the default backbone give at the same recall.
"""

import argparse
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from transferkit.data.decode import decode, probe
from transferkit.data.duplicates import alike, candidates, look_at, similar_hashes
from transferkit.data.reading import PLAIN

WAYS = ("recoded", "resized", "cropped", "brightened", "all four")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp")
Pairs = Sequence[tuple[int, int]]


def altered(image: Image.Image, way: str, generator: np.random.Generator) -> Image.Image:
    """Return an altered copy, decoded from the JPEG that it would be saved as."""
    width, height = image.size
    quality = 92
    if way in ("cropped", "all four"):
        kept = (round(0.95 * width), round(0.95 * height))
        left, top = (
            int(generator.integers(0, a - b + 1)) for a, b in zip(image.size, kept, strict=True)
        )
        image = image.crop((left, top, left + kept[0], top + kept[1]))
    if way in ("resized", "all four"):
        factor = generator.uniform(0.5, 1.5)
        image = image.resize([max(1, round(side * factor)) for side in image.size])
    if way in ("brightened", "all four"):
        factor = generator.uniform(1.0, 1.2)
        image = image.point(lambda value: min(255, round(value * factor)))
    if way in ("recoded", "all four"):
        quality = int(generator.integers(60, 91))
    image.save(buffer := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def of_one_object(one: Path, other: Path, gaps: Sequence[int]) -> bool:
    """Whether the numbers at the ends of two names are near each other."""
    ends = [re.search(r"(\d+)$", file.stem) for file in (one, other)]
    if one == other or None in ends:
        return one == other
    gap = abs(int(ends[0][1]) - int(ends[1][1]))
    return gap <= gaps[0] or (gap <= gaps[1] and one.parent.name == other.parent.name)


def copies(
    folder: Path, files: Sequence[Path], every: int, generator: np.random.Generator
) -> Iterator[tuple[int, str, Path]]:
    """Write the altered copies; yield the number of the original, the way and the file."""
    for number in range(0, len(files), every):
        image = decode(files[number])
        for way in WAYS:
            path = folder / f"{number}-{way.replace(' ', '-')}.png"
            altered(image, way, generator).save(path)
            yield number, way, path


def sheet(files: Sequence[Path], pairs: Pairs, path: Path) -> None:
    """Save pairs of pictures, one above the other."""
    most = min(len(pairs), 120)
    page = Image.new("RGB", (20 * 100, -(-most // 20) * 210))
    for at, pair in enumerate(pairs[:most]):
        for half, number in enumerate(pair):
            small = decode(files[number]).resize((98, 100))
            page.paste(small, (at % 20 * 100, at // 20 * 210 + 102 * half))
    page.save(path)


def feature_scores(files: Sequence[Path], pairs: Pairs) -> np.ndarray:
    """Return the mean cosine over the top depths of the default backbone for each pair."""
    import torch

    from transferkit.backbones.chain import find_chain
    from transferkit.backbones.create import create_backbone
    from transferkit.backbones.head import Classifier, FrozenTrunk
    from transferkit.closed_form.depths import DepthTrunk, find_depths, top_depths
    from transferkit.data.framing import framed
    from transferkit.data.views import clean_view

    backbone = create_backbone()
    size = framed(backbone.preprocessing, "squash", None)
    model, example = backbone.model.eval(), torch.zeros(2, 3, size.height_px, size.width_px)
    depths = top_depths(find_depths(model, find_chain(model, example).groups, example), 5)
    whole = Classifier(model, torch.nn.Identity(), size.mean, size.std)
    network = FrozenTrunk(whole, DepthTrunk(model, depths)).eval()
    rows: dict[int, np.ndarray] = {}
    cuts = np.cumsum([depth.columns for depth in depths])[:-1]
    with torch.inference_mode():
        for number in sorted({number for pair in pairs for number in pair}):
            view = torch.from_numpy(clean_view(decode(files[number]), size))[None]
            parts = np.split(network(view)[0].numpy(), cuts)
            rows[number] = np.concatenate([part / np.linalg.norm(part) for part in parts])
    return np.array([rows[a] @ rows[b] / len(depths) for a, b in pairs])


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Print the figures of one folder."""
    originals = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
    generator = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as place:
        made = list(copies(Path(place), originals, options.every, generator))
        files = [*originals, *(path for _, _, path in made)]
        source = [*range(len(originals)), *(number for number, _, _ in made)]
        hashes = np.array([probe(file).dhash for file in files], dtype=np.uint64)
        pairs, note = candidates(hashes)
        looks = {number: look_at(file, PLAIN) for number, file in enumerate(files)}
        found = set(alike({n: look for n, look in looks.items() if look}, pairs))
        true = {(number, len(originals) + at): way for at, (number, way, _) in enumerate(made)}

        def is_false(pair: tuple[int, int]) -> bool:
            if pair[0] >= len(originals):  # two copies
                return False
            sources = (originals[source[number]] for number in pair)
            return not of_one_object(*sources, options.series)

        print(f"\n{folder}: {len(originals)} pictures, {len(made)} copies, {len(pairs)} candidates")
        if note:
            print(note)
        near = set(similar_hashes(hashes, 4))
        for name, chosen in (("hash, 4 bits", near), ("hash, candidates", set(pairs)), ("now", found)):  # fmt: skip  # noqa: E501
            by_way = [
                np.mean([pair in chosen for pair, of in true.items() if of == way]) for way in WAYS
            ]
            hits, false = len(chosen & true.keys()), sum(map(is_false, chosen))
            shares = " ".join(f"{share:8.1%}" for share in by_way)
            precision = hits / max(1, hits + false)
            print(f"{name:<18}{shares}   recall {hits / len(true):6.1%}  false {false}"
                  f"  precision {precision:6.1%}")  # fmt: skip
        if options.features:
            judged = [pair for pair in pairs if pair in true or is_false(pair)]
            scores = feature_scores(files, judged)
            is_true = np.array([pair in true for pair in judged])
            limit = np.sort(scores[is_true])[sum(is_true) - len(found & true.keys())]
            false = int((scores[~is_true] >= limit).sum())
            hits = len(found & true.keys())
            print(f"pooled features, cosine >= {limit:.4f}: the same recall, false {false}"
                  f"  precision {hits / (hits + false):.1%}")  # fmt: skip
        wrong = sorted(filter(is_false, found))
        for pair in [pair for pair in wrong if pair[1] < len(originals)]:
            print("   ", *(files[number].relative_to(folder) for number in pair))
        if options.sheet and wrong:
            sheet(files, wrong, options.sheet)


def main() -> None:
    """Print the figures of all folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--series", type=int, nargs=2, default=(-1, -1))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--features", action="store_true")
    options = parser.parse_args()
    print(" " * 18 + " ".join(f"{way:>8}" for way in WAYS))
    for folder in options.folders:
        measure(folder, options)


if __name__ == "__main__":
    main()
