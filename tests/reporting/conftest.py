from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transferkit.config import Config, Data
from transferkit.inference.calibration import calibrate
from transferkit.reporting.gather import Picture, RunData

EVIL = "</script><script>alert('x')</script>"


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunData]:
    """Return runs with hostile names; the pictures lie in the folder that is given."""
    return finished


def finished(root: Path, classes: tuple[str, ...] = ("cat", EVIL)) -> RunData:
    """Return a run of four pictures, one of which is wrong, with two stages."""
    summary = {
        "metrics": {"accuracy": 0.75, "log_loss": 0.5},
        "val_pictures": 4,
        "train_pictures": 8,
        "head_only_accuracy": 0.5,
        "seconds": 3.0,
        "parts": {"scan": 1.0},
        "stages": [
            {
                **{"name": name, "epochs": 1, "seconds": 1.0, "seconds_per_epoch": 1.0},
                **{"pictures_per_second": 8.0, "cached": True, "best_accuracy": 0.75},
                "reason": "finished",
            }
            for name in ("head", "top 1")
        ],
    }
    rows = tuple(
        {
            **{"stage": stage, "stage_name": str(stage), "train_loss": 1.0, "val_loss": 0.5},
            **{"train_accuracy": 0.5, "val_accuracy": 0.75, "best": stage, "lr/head": 1e-3},
        }
        for stage in (0, 1)
    )
    a, b = classes[:2]
    answers = [((a, 0.9), (b, 0.1)), ((b, 0.8), (a, 0.2)), ((b, 0.6), (a, 0.4))]
    truths = [a, b, b, a]
    pictures = tuple(
        Picture(f"{EVIL if i else ''}{i}.png", truth, answer)
        for i, (truth, answer) in enumerate(zip(truths, [*answers, answers[1]], strict=True))
    )
    data = {
        "counts": {name: {"train": 4, "val": 2, "test": 0} for name in classes},
        "splits": {"train": 8, "val": 4, "test": 0},
        "warnings": [EVIL],
    }
    description = {"classes": list(classes), "backbone": "x", "started_from": "y", "license": "z"}
    description |= {"background": "white", "max_pixels": 10**8}
    config = Config(data=Data(path=root))
    scores = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0], [0.0, 2.0]])
    calibration = calibrate(scores, np.array([0, 1, 1, 0])).to_dict()
    return RunData(
        *(root / "run", summary, description, data, calibration, rows, pictures, config, EVIL)
    )
