"""Rebuild this folder's pictures from two npm packages.

    python data_samples/build.py                      # fetches both packages with `npm pack`
    python data_samples/build.py ART_DIR NAMES_DIR    # or takes them unpacked

ART_DIR holds the package folder of @lobehub/fluent-emoji-3d (with assets/), NAMES_DIR that of
emoji-datasource-google (with emoji.json). Needs Pillow. Same packages, same seed and same Pillow
give the same bytes.
"""

import json
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

ART_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES_PACKAGE = "emoji-datasource-google@16.0.0"
HERE = Path(__file__).resolve().parent
SEED = 0
SIZE_PX = 192
QUALITY = 60
TRAIN_FRACTION = 0.6
MOST_PER_CLASS = 125
UNLABELED = 600

# Subcategories of emoji.json that make up each class; a trailing "-" takes every one beginning so.
CLASSES = {
    "animal": ("animal-",),
    "building": ("place-building", "place-religious"),
    "clothing": ("clothing",),
    "food": ("food-", "drink"),
    "object": ("computer", "household", "light & video", "office", "tool"),
    "plant": ("plant-",),
    "sport": ("sport",),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
}


def unpack(package: str, folder: Path) -> Path:
    """Fetch an npm package into `folder` and return where it was unpacked."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    )
    archive = folder / packed.stdout.strip().splitlines()[-1]
    target = folder / archive.stem
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def read_emoji(art: Path, names: Path) -> list[tuple[str, str, str, Path]]:
    """List (short name, category, subcategory, picture) of every emoji that has a picture."""
    rows = []
    for entry in json.loads((names / "emoji.json").read_text(encoding="utf-8")):
        for code in (entry["unified"], entry["non_qualified"]):
            picture = art / "assets" / f"{(code or 'none').lower()}.webp"
            if picture.is_file():
                place = entry["category"], entry["subcategory"]
                # "+1" and "-1" would look like options on a command line
                name = next(name for name in entry["short_names"] if name[0].isalnum())
                rows.append((name, *place, picture))
                break
    return sorted(rows)


def class_of(subcategory: str) -> str | None:
    """Name the class a subcategory belongs to, if any."""
    for name, kinds in CLASSES.items():
        if any(
            subcategory == kind or (kind.endswith("-") and subcategory.startswith(kind))
            for kind in kinds
        ):
            return name
    return None


def looks_like_another(category: str, picture: Path) -> bool:
    """Tell whether an emoji is a near copy: the gendered form of a person, or a country's flag."""
    man_or_woman = picture.stem.startswith(("1f468-200d", "1f469-200d"))
    return (
        category == "Flags" or man_or_woman or picture.stem.endswith(("-2640-fe0f", "-2642-fe0f"))
    )


def choose(rows: list[tuple[str, str, str, Path]]) -> dict[str, Path]:
    """Map every file to write, relative to this folder, to the picture it is made from."""
    order = random.Random(SEED)
    labelled: dict[str, list[tuple[str, Path]]] = {name: [] for name in CLASSES}
    others = []
    for short_name, category, subcategory, picture in rows:
        name = class_of(subcategory)
        if name is not None:
            labelled[name].append((short_name, picture))
        elif not looks_like_another(category, picture):
            others.append((short_name, picture))
    chosen = {}
    for name, members in labelled.items():
        members = order.sample(members, min(len(members), MOST_PER_CLASS))
        train = round(len(members) * TRAIN_FRACTION)
        for position, (short_name, picture) in enumerate(members):
            split = "train" if position < train else "val"
            chosen[f"{split}/{name}/{short_name}.webp"] = picture
    for short_name, picture in order.sample(others, min(len(others), UNLABELED)):
        chosen[f"unlabeled/{short_name}.webp"] = picture
    return chosen


def write(chosen: dict[str, Path]) -> None:
    """Replace train/, val/ and unlabeled/ with reduced RGBA copies of the chosen pictures."""
    for folder in ("train", "val", "unlabeled"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for name, picture in chosen.items():
        target = HERE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(picture) as image:
            small = image.convert("RGBA").resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
        small.save(target, "WEBP", quality=QUALITY, alpha_quality=50, method=6)


def main(arguments: list[str]) -> None:
    """Build from the two unpacked packages given, or from freshly fetched ones."""
    if len(arguments) not in (0, 2):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        if arguments:
            art, names = map(Path, arguments)
        else:
            art = unpack(ART_PACKAGE, Path(scratch))
            names = unpack(NAMES_PACKAGE, Path(scratch))
        chosen = choose(read_emoji(art, names))
        write(chosen)
    total = sum((HERE / name).stat().st_size for name in chosen)
    print(f"{len(chosen)} pictures, {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
