"""Feed random bytes, guided by coverage, to what reads the files of others.

    python tests/fuzz/fuzz.py TARGET [MINUTES]      picture, manifest, recipe or run; 2 minutes

`make fuzz` does all of them. What is neither understood nor refused with a message ends the fuzzer
and leaves the bytes in crash-...; they become a case in tests/hostile/. Needs the package atheris.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["transferkit", "PIL", "tomllib", "csv", "json"]):
    from transferkit.data.decode import DecodeError, decode, probe
    from transferkit.data.manifest import read_manifest
    from transferkit.data.reading import Reading
    from transferkit.errors import UserError
    from transferkit.recipes.reading import find_recipe, load_config, read_recipe
    from transferkit.runs.folder import open_run

MOST_BYTES = 4096
TABLE = b"path,label,split\na.png,cat,train\n"
FOLDER = Path(tempfile.mkdtemp(prefix="transferkit-fuzz-"))
SEEDS = Path(__file__).resolve().parents[2]


LIMITED = Reading(max_pixels=1_000_000)


def picture(data: bytes) -> None:
    """Read bytes as `inspect`, `finetune` and `predict` read a picture."""
    path = FOLDER / "picture.png"
    path.write_bytes(data)
    probe(path, LIMITED)
    decode(path, LIMITED, 32)


def manifest(data: bytes) -> None:
    """Read bytes as a CSV manifest, beside a file that it may name."""
    path = FOLDER / "table.csv"
    (FOLDER / "a.png").touch()
    path.write_bytes(data)
    read_manifest(path)


def recipe(data: bytes) -> None:
    """Read bytes as a recipe."""
    path = FOLDER / "recipe.toml"
    path.write_bytes(data)
    load_config(read_recipe(find_recipe(str(path))))


def run(data: bytes) -> None:
    """Read bytes as one of the files of a run folder; the first byte says which."""
    names = ("model.json", "model.safetensors", "metrics.csv", "recipe.toml", "checkpoints/last.pt")
    place = FOLDER / "run"
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    (place / "recipe.toml").write_text("")
    (place / "model.json").write_text("{}")
    chosen = place / names[data[0] % len(names) if data else 0]
    chosen.write_bytes(data[1:])
    folder = open_run(place)
    for call in (
        folder.read_description,
        folder.load_model,
        folder.read_metrics,
        folder.read_recipe,
        lambda: folder.load_checkpoint("last"),
    ):
        try:
            call()
        except UserError:
            continue


TARGETS: dict[str, tuple[Callable[[bytes], None], str]] = {
    "picture": (picture, "data_samples/**/*.webp"),
    "manifest": (manifest, "no such file"),  # see TABLE
    "recipe": (recipe, "recipes/*.toml"),
    "run": (run, "recipes/*.toml"),
}


def main() -> None:
    """Fuzz one target for some minutes, from a few real files."""
    name, minutes = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    target, seeds = TARGETS[name]

    def one(data: bytes) -> None:
        try:
            target(data)
        except (UserError, DecodeError) as error:
            if not 0 < len(str(error)) < 4000:
                raise RuntimeError("a message of no use") from error

    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, file in enumerate(sorted(SEEDS.glob(seeds))[:20]):
        (corpus / str(number)).write_bytes(file.read_bytes()[:MOST_BYTES])
    if name == "manifest":
        (corpus / "0").write_bytes(TABLE)
    limits = (f"-max_total_time={60 * minutes:.0f}", "-timeout=10", "-rss_limit_mb=3000")
    atheris.Setup([sys.argv[0], str(corpus), f"-max_len={MOST_BYTES}", *limits], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
