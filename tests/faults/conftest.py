import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import ZYGOTE, Ground, Scenario, Zygote, hashes

import transferkit


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    package = str(Path(transferkit.__file__).parents[1])  # the one that the tests import
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFERKIT_CACHE": "cache"}
    env["PYTHONPATH"] = package
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(ZYGOTE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        yield Zygote(process)
        process.stdin.close()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def ground_of(
    zygote: Zygote, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Scenario], Ground]:
    """Return what makes the ground of a scenario, once."""
    made: dict[str, Ground] = {}

    def make(scenario: Scenario) -> Ground:
        if scenario.name not in made:
            ground = Ground(scenario, tmp_path_factory.mktemp(scenario.name))
            start = ground.folder / "start"
            shutil.copytree(pictures, start / "pictures")
            if scenario.before:
                assert zygote.run(scenario.before, start)["code"] == 0
            undisturbed = ground.fresh("undisturbed")
            told = zygote.run(scenario.argv, undisturbed)
            assert told["code"] == 0, told["err"]
            ground.writes, ground.pictures = told["writes"], told["pictures"]
            ground.seconds = told["seconds"]
            ground.expected = hashes(undisturbed, scenario.kept)
            assert all(ground.expected.values())
            made[scenario.name] = ground
        return made[scenario.name]

    return make
