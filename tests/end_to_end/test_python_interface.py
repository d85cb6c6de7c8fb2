"""`import transferkit as tk`: the same runs, rows, figures and errors as the commands."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import transferkit as tk
from transferkit.errors import UserError
from transferkit.verbs import finetune as finetune_verb
from transferkit.verbs.interface import framed, keyed

Cli = Callable[..., Any]
TINY: dict[str, Any] = {
    "backbone": "test_efficientnet",
    "pretrained": False,
    "image_size": 32,
    "engine": "torch",
    "device": "cpu",
    "dropout": 0.2,
}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_verb, "draw", lambda *_: None)
        patch.setenv("TRANSFERKIT_CACHE", str(root / "cache"))
        return tk.finetune(pictures, out=root / "run", stages="solve", progress=False, **TINY)


def rows_of(found: Any) -> list[dict[str, Any]]:
    """Return rows as dicts, also where pandas is installed."""
    return found if isinstance(found, list) else found.to_dict("records")


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, transferkit; print({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tk.nonsense  # noqa: B018


def test_rows_are_those_of_the_command(run: Any, pictures: Path, cli: Cli) -> None:
    files = sorted((pictures / "val").rglob("*.png"))
    ours = rows_of(run.predict(files, mc_dropout=5))
    theirs = cli("predict", run.path, *files, "--mc-dropout", 5, "--json").json["predictions"]
    assert len(ours) == 12
    for one, other in zip(ours, theirs, strict=True):
        assert one["label"] == other["label"]
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)
        assert one["mutual_information"] == pytest.approx(other["mutual_information"], abs=1e-6)


def test_images_and_arrays_are_pictures_too(run: Any, pictures: Path) -> None:
    file = next((pictures / "val").rglob("*.png"))
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    found = rows_of(run.predict([file, image, np.asarray(image)]))
    assert len({row["probability"] for row in found}) == 1
    one = rows_of(run.predict(str(file)))
    assert one[0]["probability"] == found[0]["probability"]
    features = run.embed([file, image])
    assert features.shape[0] == 2
    assert np.array_equal(features[0], features[1])


def test_figures_are_those_of_the_run(run: Any, pictures: Path) -> None:
    measured = run.evaluate(pictures)
    assert measured.evaluation.headline["accuracy"] == run.summary["metrics"]["accuracy"]
    again = tk.load(run.path)
    assert again == run
    assert again._repr_html_().startswith("<iframe srcdoc=")
    with pytest.raises(UserError, match="was not judged by folds"):
        run.evaluate(folds=True)


def test_labels_of_a_run(run: Any) -> None:
    found = tk.labels(run=run.path, select=3, progress=False)
    assert len(found.rows()) == 3
    assert found.pictures == 30


def test_an_unknown_option_is_told_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"no option imagesize \(did you mean image_size"):
        keyed({"imagesize": 3}, ("backbone",))
    assert keyed({"lr": 1.0, "data.manifest": Path("x")}, ("training", "data")) == {
        "training.lr": 1.0,
        "data.manifest": "x",
    }
    with pytest.raises(UserError, match="must be greater than or equal to 16"):
        tk.finetune("somewhere", image_size=3, progress=False)


def test_rows_become_a_frame_where_pandas_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert framed(iter([{"a": 1}])) == [{"a": 1}]

    class Pandas:
        @staticmethod
        def DataFrame(rows: list[Any]) -> tuple[str, list[Any]]:
            return "frame", rows

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    assert framed(iter([{"a": 1}])) == ("frame", [{"a": 1}])


def test_the_page_names_what_there_is() -> None:
    named = set(re.findall(r"`tk\.(\w+)\(", PAGE.read_text()))
    assert named == set(tk.__all__) - {"Run", "__version__"}
