"""What may befall a run, at random moments: nothing finished is lost, and it can go on.

After each misfortune a person does what the tool says, and ends with the very files of a run that
nothing befell.
"""

import csv
import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import SCENARIOS, Ground, Scenario, Zygote, hashes

Tally = Callable[..., None]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
UNTIDY = ("Traceback", "this is a bug")
STOPPED = {
    "kill": (-9,),
    "terminate": (130,),
    "interrupt": (130,),
    "full": (1,),
    "quota": (1,),
    "vanish": (0, 1),
    "jump": (0,),
    "delete picture": (0, 1),
    "truncate picture": (0, 1),
    "replace picture": (0, 1),
    "flip": (-9,),
    "cut": (-9,),
}
"""Kind of fault -> exit codes that it may end with; 0, too, where it came too late to matter."""
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
DAMAGED = ("cache/**/*", "r/checkpoints/*", "r/*.safetensors", "r/model.json", "r/calibration.json")


def drawn(kind: str, ground: Ground, generator: random.Random) -> dict[str, Any]:
    """Draw when a fault happens."""
    if kind in ("flip", "cut"):
        kind = "kill"
    if kind == "quota":
        return {"kind": kind, "size": int(10 ** generator.uniform(1.5, 5))}
    if "picture" in kind:
        scanned = ground.pictures // 3  # before, it counts as never having been there
        return {"kind": kind, "event": generator.randint(scanned, ground.pictures)}
    if kind == "kill" and generator.random() < 0.4:
        return {"kind": kind, "seconds": generator.uniform(0, 1.2 * ground.seconds)}
    fault = {"kind": kind, "event": generator.randint(1, max(1, ground.writes))}
    return fault | ({"errno": generator.choice(ERRORS)} if kind == "full" else {})


def rows_of(folder: Path, scenario: Scenario) -> list[dict[str, str]]:
    """Return what a run says is finished, without times."""
    path = folder / scenario.rows
    if not scenario.rows or not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    timed = ("seconds", "per_s")
    return [
        {k: v for k, v in row.items() if v and not any(word in k for word in timed)} for row in rows
    ]


def changed(before: list[dict[str, str]], after: list[dict[str, str]]) -> str:
    """Name what differs first."""
    if len(after) < len(before):
        return f"{len(before)} rows became {len(after)}"
    pairs = ((a, b) for a, b in zip(before, after, strict=False) if a != b)
    first, second = next(pairs)
    return str(
        {key: (first[key], second.get(key)) for key in first if first[key] != second.get(key)}
    )


def damage(folder: Path, kind: str, generator: random.Random) -> str:
    """Flip a bit of a file that a run left, or cut it; return its name, "" where there is none."""
    files = sorted({p for name in DAMAGED for p in folder.glob(name) if p.is_file()})
    files = [path for path in files if path.stat().st_size]
    if not files:
        return ""
    path = generator.choice(files)
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: generator.randrange(len(data))]
    else:
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    return str(path.relative_to(folder))


def restore(folder: Path, ground: Ground) -> None:
    """Put the pictures back."""
    shutil.rmtree(folder / "pictures")
    shutil.copytree(ground.folder / "start" / "pictures", folder / "pictures")


def go_on(zygote: Zygote, folder: Path, scenario: Scenario) -> Any:
    """Do what a person does next: go on with what is there, or run the command again."""
    resumable = not scenario.rows or (folder / "r/recipe.toml").is_file()
    return zygote.run(scenario.again if resumable else scenario.argv, folder)


def befall(zygote: Zygote, ground: Ground, kind: str, seed: int) -> str:
    """Let one fault happen and go on; return what is wrong then, "" where nothing is."""
    scenario, generator = ground.scenario, random.Random(f"{ground.scenario.name}{kind}{seed}")
    folder = ground.fresh(f"{kind}-{seed}".replace(" ", "-"))
    fault = drawn(kind, ground, generator)
    told = zygote.run(scenario.argv, folder, fault)
    where = f"{scenario.name} {fault}"
    if told["code"] not in (0, *STOPPED[kind]) or any(word in told["err"] for word in UNTIDY):
        return f"{where}: ended with {told['code']}: {told['err'][-600:]}"
    finished = rows_of(folder, scenario)
    if kind in ("flip", "cut"):
        where += f", {kind} {damage(folder, kind, generator)}"
    restore(folder, ground)
    said = (folder / "out.txt").read_text()
    told_so = scenario.name == "predict" and "picture" in kind and "not be read" in said
    if told["code"] == 0 and (kind in ("flip", "cut", "vanish") or told_so):
        shutil.rmtree(folder)
        return ""
    if told["code"]:
        told = go_on(zygote, folder, scenario)
    refused = told["code"] in (1, 2) and not any(word in told["err"] for word in UNTIDY)
    if kind in ("flip", "cut") and refused:
        shutil.rmtree(folder)
        return ""
    if told["code"]:
        return f"{where}: going on ended with {told['code']}: {told['err'][-600:]}"
    if (found := hashes(folder, scenario.kept)) != ground.expected:
        other = [name for name, text in found.items() if text != ground.expected[name]]
        return f"{where}: other than undisturbed: {other}"
    if finished and rows_of(folder, scenario)[: len(finished)] != finished:
        return f"{where}: finished epochs changed: {changed(finished, rows_of(folder, scenario))}"
    if left := [str(p.relative_to(folder)) for p in folder.rglob(".*.tmp")]:
        return f"{where}: left behind {left}"
    shutil.rmtree(folder)
    return ""


def attack(zygote: Zygote, ground: Ground, kind: str, seeds: range, tally: Tally) -> None:
    """Let a fault happen for each seed; fail with all that is wrong."""
    wrong = [text for seed in seeds if (text := befall(zygote, ground, kind, seed))]
    tally(f"{kind}, {ground.scenario.name}", tried=len(seeds), held=len(seeds) - len(wrong))
    assert not wrong, "\n".join(wrong)


SAMPLE = (
    ("finetune", "kill"),
    ("finetune", "full"),
    ("finetune", "flip"),
    ("pretrain", "kill"),
    ("predict", "full"),
)


@pytest.mark.parametrize(("name", "kind"), SAMPLE)
def test_a_run_survives(
    name: str, kind: str, zygote: Zygote, ground_of: Callable[[Scenario], Ground], tally: Tally
) -> None:
    attack(zygote, ground_of(BY_NAME[name]), kind, range(1), tally)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STOPPED)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_run_survives_many(
    name: str, kind: str, zygote: Zygote, ground_of: Callable[[Scenario], Ground], tally: Tally
) -> None:
    attack(zygote, ground_of(BY_NAME[name]), kind, range(1, 9 if name == "finetune" else 5), tally)
