"""constraints-lowest.txt names the lower bounds of pyproject.toml, no others."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = ("torch", "torchvision")  # as in constraints.txt


def versions(lines: list[str]) -> dict[str, str]:
    """Return package -> version of lines such as `numpy>=1.26` or `numpy==1.26`."""
    found = [re.match(r"([\w.-]+)(?:>=|==)([\w.]+)", line) for line in lines]
    return {match[1].lower(): match[2] for match in found if match}


def test_the_lowest_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = versions([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    lowest = versions((ROOT / "constraints-lowest.txt").read_text().splitlines())
    assert {n: v for n, v in lowest.items() if n not in PINNED} == {
        n: v for n, v in wanted.items() if n not in PINNED
    }
    exact = versions((ROOT / "constraints.txt").read_text().splitlines())
    assert {name: lowest[name] for name in PINNED} == {name: exact[name] for name in PINNED}
