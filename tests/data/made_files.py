"""Files with nothing of a picture but the name."""

from pathlib import Path


def touch(folder: Path, *names: str) -> None:
    """Make files of one byte below a folder, with the folders that they lie in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
