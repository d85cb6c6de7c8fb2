import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transferkit.timm_import  # noqa: F401  # isort: skip
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

Cli = Callable[..., Any]
SAMPLES = Path(__file__).resolve().parents[2] / "data_samples"
TINY = ("--backbone", "test_efficientnet", "--image-size", "32", "--batch-size", "8")


@pytest.fixture(scope="module")
def pretrained(
    unlabeled: Path, pictures: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished pretraining run of two epochs, probed with labelled pictures."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    options = ("--method", "simclr", "--epochs", "2", "--probe", pictures, "--out", out)
    result = cli("pretrain", unlabeled, *TINY, *options)
    assert result.code == 0, result.err
    assert "simclr of test_efficientnet" in result.out
    assert f"transferkit finetune DATA --from {out}" in result.out
    return out


def test_a_run_folder_is_complete(pretrained: Path) -> None:
    there = {str(p.relative_to(pretrained)) for p in pretrained.rglob("*") if p.is_file()}
    assert there >= {
        *("recipe.toml", "data.json", "summary.json", "model.json", "model.safetensors"),
        *("metrics.csv", "log.txt", "report.html", "checkpoints/last.pt"),
        *("plots/curves.png", "plots/filters.png", "plots/feature_map.png"),
    }
    summary = json.loads((pretrained / "summary.json").read_text())
    assert summary["epochs"] == 2
    assert {"loss", "val_loss", "spread", "rank", "probe_knn", "probe_linear"} <= summary[
        "figures"
    ].keys()
    for plot in (pretrained / "plots").iterdir():
        with Image.open(plot) as image:
            assert min(image.size) > 100


def test_the_report_shows_the_figures_and_every_plot(pretrained: Path, cli: Cli) -> None:
    assert cli("report", pretrained).code == 0
    page = (pretrained / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "probe linear" in page
    assert f"transferkit finetune DATA --from {pretrained}" in page


def test_a_pretraining_run_is_not_compared_with_classifiers(
    pretrained: Path, run: Path, cli: Cli
) -> None:
    result = cli("compare", run, pretrained)
    assert result.code == 2
    assert "compare looks at classifiers" in result.err


def test_timm_loads_the_backbone(pretrained: Path) -> None:
    model = timm.create_model(
        "test_efficientnet", num_classes=0, checkpoint_path=str(pretrained / "model.safetensors")
    )
    for name, tensor in load_file(pretrained / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_finetune_starts_from_the_backbone_and_its_run_can_be_repeated(
    pretrained: Path, pictures: Path, cli: Cli, own_folder: Path
) -> None:
    options = ("--stages", "head:1", "--views", "1", "--from", pretrained, "--out", "r")
    result = cli("finetune", pictures, *options)
    assert result.code == 0, result.err
    recipe = tomllib.loads((own_folder / "r/recipe.toml").read_text())
    assert recipe["backbone"]["name"] == "test_efficientnet"
    assert recipe["backbone"]["image_size"] == 32
    assert recipe["backbone"]["weights"] == str(pretrained / "model.safetensors")
    tuned = load_file(own_folder / "r/model.safetensors")
    for name, tensor in load_file(pretrained / "model.safetensors").items():
        assert torch.equal(tuned[f"backbone.{name}"], tensor)  # the head alone was trained
    again = cli("finetune", "--recipe", "r", "--out", "again")
    assert again.code == 0, again.err
    one, other = (own_folder / n / "model.safetensors" for n in ("r", "again"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--weights", "x.pt"), "--from and --weights contradict each other"),
        (("--no-pretrained",), "--from and --no-pretrained contradict each other"),
        (("--backbone", "resnet18"), "backbone.name = resnet18 contradicts --from"),
    ],
)
def test_options_that_contradict_the_earlier_run_are_refused(
    pretrained: Path, pictures: Path, cli: Cli, more: tuple[str, ...], text: str
) -> None:
    result = cli("finetune", pictures, "--from", pretrained, *more)
    assert result.code == 2
    assert text in result.err


def test_embed_writes_the_features_of_the_backbone(
    pretrained: Path, pictures: Path, run: Path, cli: Cli, own_folder: Path
) -> None:
    result = cli("embed", pretrained, pictures, "-o", "f.safetensors", "--json")
    assert result.code == 0, result.err
    assert result.json["pictures"] == 30
    features = load_file("f.safetensors")["features"]
    with safe_open("f.safetensors", "pt") as file:
        paths = json.loads(file.metadata()["paths"])
    assert features.shape == (30, result.json["width"])
    assert len(paths) == 30
    assert cli("predict", pretrained, pictures, "--save-features", "g.safetensors").code == 0
    assert torch.equal(features, load_file("g.safetensors")["features"])
    rows = cli("embed", run, pictures, "-o", "f.csv")
    assert rows.code == 0, rows.err
    assert (
        cli("predict", run, pictures, "-o", "p.csv", "--save-features", "h.safetensors").code == 0
    )
    table = np.genfromtxt("f.csv", delimiter=",", skip_header=1, usecols=range(1, 5))
    torch.testing.assert_close(
        torch.from_numpy(table).float(), load_file("h.safetensors")["features"][:, :4]
    )


def test_a_run_without_classifier_does_not_predict(
    pretrained: Path, pictures: Path, cli: Cli
) -> None:
    for command in ("predict", "evaluate"):
        result = cli(command, pretrained, pictures)
        assert result.code == 2
        assert "it has a backbone, but no classifier" in result.err
        assert f"transferkit finetune DATA --from {pretrained}" in result.err


def test_each_kind_of_run_is_resumed_by_its_own_command(
    pretrained: Path, run: Path, cli: Cli
) -> None:
    result = cli("finetune", "--resume", pretrained)
    assert result.code == 2
    assert f"transferkit pretrain --resume {pretrained}" in result.err
    result = cli("pretrain", "--resume", run)
    assert result.code == 2
    assert f"transferkit finetune --resume {run}" in result.err


def test_data_samples_teach(cli: Cli, own_folder: Path) -> None:
    """The pictures that come with the project, as the README calls the command."""
    options = ("--method", "autoencoder", "--epochs", "1", "--out", "r")
    result = cli("pretrain", SAMPLES / "unlabeled", *TINY, *options)
    assert result.code == 0, result.err
    assert (own_folder / "r/plots/reconstructions.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "no pictures given"),
        (("nowhere",), 2, "nowhere does not exist"),
        (("one",), 1, "one holds 1 readable picture"),
        (("few", "--epochs", "1", "--budget", "1m"), 2, "contradict each other"),
        (("few", "--budget", "soon"), 2, "must be a time such as 90s"),
        (("few", "--method", "simclr", "--loss", "l1"), 2, "pretraining.loss has no effect"),
        (("few", "--method", "magic"), 2, "is not one of"),
        (("few", "--probe", "nowhere"), 2, "nowhere does not exist"),
        (("few", "--precision", "16"), 2, "use bf16 or 32"),
        (("few", "--set", "training.lr=1e-3"), 2, "training.lr has no effect on pretraining"),
    ],
)
def test_what_people_get_wrong_is_one_clear_line(
    arguments: tuple[str, ...], code: int, text: str, cli: Cli, own_folder: Path
) -> None:
    for name, count in (("one", 1), ("few", 5)):
        (own_folder / name).mkdir()
        for number in range(count):
            Image.new("RGB", (20, 20), (40 * number, 0, 0)).save(
                own_folder / name / f"{number}.png"
            )
    tiny = () if "--method" in arguments else ("--backbone", "test_efficientnet")
    result = cli("pretrain", *arguments, *tiny)
    assert result.code == code, result.err
    assert text in result.err
    assert not (own_folder / "runs").exists()


def test_fewer_pictures_than_a_batch_and_pictures_of_any_kind_are_taken(
    cli: Cli, own_folder: Path
) -> None:
    (own_folder / "odd").mkdir()
    for number, (mode, size) in enumerate(
        (("RGB", (40, 20)), ("L", (7, 90)), ("RGBA", (33, 33)), ("1", (64, 64)), ("P", (9, 8)))
    ):
        Image.new(mode, size, number).save(own_folder / "odd" / f"{number}.png")
    options = ("--method", "simclr", "--epochs", "1", "--out", "r")
    result = cli("pretrain", "odd", *TINY, *options)
    assert result.code == 0, result.err
    assert "only 4 training pictures: every batch has 4, not 8" in result.out


def test_another_labelled_set_stands_in_for_pictures_without_labels(
    pictures: Path, unlabeled: Path, cli: Cli
) -> None:
    options = ("--method", "supervised", "--aux", pictures, "--epochs", "1", "--out", "other")
    result = cli("pretrain", *TINY, *options, "--json")
    assert result.code == 0, result.err
    assert (result.json["pictures"], result.json["held_out"]) == (18, 12)
    assert 0 <= result.json["figures"]["val_accuracy"] <= 1
    refused = cli("pretrain", unlabeled, *TINY, *options)
    assert refused.code == 2
    assert "supervised learns from --aux" in refused.err


def test_auxiliary_options_without_sense_are_refused(unlabeled: Path, cli: Cli) -> None:
    for options, text in (
        (("--method", "supervised"), "supervised needs --aux"),
        (("--grid", "3"), "pretraining.grid has no effect with pretraining.method = simclr"),
        (("--method", "rotation", "--identities"), "pretraining.identities has no effect"),
        (
            ("--method", "same-or-different", "--identities", "--image-size", "32"),
            "--identities needs two folders",
        ),
    ):
        folder = unlabeled / "flat" if "--image-size" in options else unlabeled
        result = cli("pretrain", folder, *options)
        assert result.code == 2
        assert text in result.err
