from pathlib import Path

import pytest
from attack import command


@pytest.fixture(scope="session")
def tiny_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny random network on three classes."""
    root = tmp_path_factory.mktemp("finished")
    network = ("--backbone", "test_efficientnet", "--no-pretrained", "--image-size", "32")
    plan = ("--stages", "1:1", "--views", "1", "--batch-size", "6", "--cache-dir", root / "cache")
    command("finetune", pictures, *network, *plan, "--out", root / "run", codes=(0,))()
    return root / "run"
