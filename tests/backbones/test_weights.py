import argparse
import os
import pickle
import re
from collections import OrderedDict, defaultdict
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from transferkit.backbones.fitting import WeightReport, adapted, compare, unfilled
from transferkit.backbones.weights import (
    Loaded,
    load_weights_file,
    map_by_order,
    read_tensors,
)
from transferkit.errors import UserError

Tensors = dict[str, Tensor]


def build(name: str = "test_resnet", seed: int = 0, **more: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, **{"num_classes": 0, **more}).eval()


def assert_same(model: nn.Module, expected: Tensors) -> None:
    state = model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.fixture(scope="module")
def trained() -> Tensors:
    """The weights of a whole model, classifier included, as training leaves them."""
    return build(seed=1, num_classes=10).state_dict()


@pytest.fixture
def target() -> nn.Module:
    return build(seed=2)


WRAPPINGS = {
    "plain": lambda t: t,
    "state_dict": lambda t: {"epoch": 3, "state_dict": t, "best": 0.5},
    "model": lambda t: {"model": t, "optimizer": {"state": {}}},
    "nested twice": lambda t: {"model": {"state_dict": t}},
    "module.": lambda t: {f"module.{n}": v for n, v in t.items()},
    "backbone.": lambda t: {f"backbone.{n}": v for n, v in t.items()},
    "module.model.": lambda t: {"state_dict": {f"module.model.{n}": v for n, v in t.items()}},
    "timm's train.py": lambda t: {"state_dict": t, "args": argparse.Namespace(lr=0.1)},
    "compiled": lambda t: {f"_orig_mod.{n}": v for n, v in t.items()},
    "compiled inside": lambda t: {n.replace(".0.", "._orig_mod.0.", 1): v for n, v in t.items()},
    "sharded": lambda t: {"module": {f"_fsdp_wrapped_module.{n}": v for n, v in t.items()}},
    "transformers": lambda t: {f"timm_model.{n}": v for n, v in t.items()},
    "fastai": lambda t: {"model": {f"0.model.{n}": v for n, v in t.items()}, "opt": {"hypers": []}},
    "open_clip": lambda t: (
        {"state_dict": {f"module.visual.trunk.{n}": v for n, v in t.items()}}
        | {"logit_scale": torch.ones([])}
    ),
    "any key": lambda t: {"my_own_weights": t, "acc": 0.9, "epoch": torch.tensor(3)},
    "list": lambda t: [{"epoch": 3}, ({"net": t},)],
    "numpy": lambda t: {"net": {n: v.numpy() for n, v in t.items()}, "acc": np.float64(0.9)},
    "other things": lambda t: {
        "hyper_parameters": defaultdict(dict, lr=0.1),
        "time": datetime(2024, 1, 1),
        "kind": Kind.ONE,
        "place": Path("/data"),
        "state_dict": {f"net.{n}": v for n, v in t.items()},
    },
    "optimizer's copies": lambda t: {
        "optimizer": {"state": dict(enumerate({"exp_avg": v + 1} for v in t.values()))},
        "encoder": t,
    },
}


class Kind(Enum):
    ONE = 1


def other(tensors: Tensors, prefix: str = "") -> Tensors:
    return {prefix + n: v + 1 for n, v in tensors.items()}


AVERAGES = {
    "EMA": (lambda t: {"state_dict": other(t), "state_dict_ema": t}, "took state_dict_ema"),
    "DINO": (
        lambda t: {
            "student": other(t, "module.backbone."),
            "teacher": {f"backbone.{n}": v for n, v in t.items()},
        },
        "took teacher.backbone (there are student.backbone, too)",
    ),
    "MoCo": (
        lambda t: (
            {f"encoder_k.{n}": v + 1 for n, v in t.items()}
            | {f"encoder_q.{n}": v for n, v in t.items()}
        ),
        "took encoder_q (there are encoder_k, too)",
    ),
    "a part of an average": (lambda t: {"ema": dict(list(other(t).items())[9:]), "model": t}, ""),
}


@pytest.mark.parametrize(("wrap", "told"), AVERAGES.values(), ids=AVERAGES)
def test_of_several_copies_the_one_to_use_is_taken(
    wrap: Any, told: str, trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(trained), path)
    notices = load_weights_file(target, path).notices
    assert [told in notice for notice in notices] == [True] * bool(told)
    assert_same(target, trained)


def test_a_whole_model_is_not_unpickled(target: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"model": target, "optimizer": {"state": {0: torch.ones(3)}}}, path)
    with pytest.raises(UserError) as caught:
        load_weights_file(target, path)
    assert caught.value.exit_code == 1
    assert "does not hold the backbone's tensors" in caught.value.what
    assert "timm.models.resnet.ResNet" in caught.value.where
    assert "torch.save(model.state_dict(), file)" in caught.value.remedy
    torch.save(target, path)
    with pytest.raises(UserError, match="more than plain tensors") as caught:
        load_weights_file(target, path)
    assert "timm.models.resnet.ResNet" in caught.value.where


@pytest.mark.parametrize(("have", "wanted"), [(3, 1), (3, 4), (3, 3)])
def test_channels_are_adapted_as_timm_does(have: int, wanted: int) -> None:
    weight = torch.randn(8, have, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapted(weight, wanted), adapt_input_conv(wanted, weight))


@pytest.mark.parametrize("channels", [1, 4])
def test_a_stem_for_other_channels_is_adapted(
    channels: int, trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    stem = adapt_input_conv(channels, trained["conv1.0.weight"])
    torch.save(trained | {"conv1.0.weight": stem}, path)
    loaded = load_weights_file(target, path)
    told = f"weights.pth: conv1.0.weight adapted from {channels} to 3 channels"
    assert loaded == Loaded((told,))
    found = target.state_dict()["conv1.0.weight"]
    if channels == 4:
        torch.testing.assert_close(found, trained["conv1.0.weight"])
    grey = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        nn.functional.conv2d(grey.repeat(1, 3, 1, 1), found),
        nn.functional.conv2d(grey, trained["conv1.0.weight"].sum(1, keepdim=True)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_stem_of_unknown_bands_is_unfilled(
    trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "bands.pth"
    torch.save(trained | {"conv1.0.weight": torch.ones(16, 13, 3, 3)}, path)
    loaded = load_weights_file(target, path)
    assert loaded.unfilled == ("conv1.0.weight",)
    assert "1 tensor of another shape: conv1.0.weight" in loaded.notices[0]


def test_what_is_computed_or_neutral_is_not_missed() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.BatchNorm1d(3))
    model.register_buffer("index", torch.arange(3))
    names = ("0.weight", "1.weight", "1.bias", "2.running_mean", "index")
    report = WeightReport(matched=(), missing=names, unexpected=(), wrong_shape=())
    assert unfilled(model, report) == ("0.weight", "2.running_mean")


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_state_dicts_as_people_save_them(
    wrap: Any, trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap(trained), path)
    assert load_weights_file(target, path) == Loaded()
    assert_same(target, trained)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_safetensors_by_content(
    suffix: str, trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"weights.{suffix}"
    safetensors.torch.save_file(trained, path)
    assert load_weights_file(target, path) == Loaded()
    assert_same(target, trained)


def test_old_files_without_batch_norm_counters(
    trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "old.pth"
    kept = {n: v for n, v in trained.items() if "num_batches" not in n}
    torch.save(kept, path)
    assert load_weights_file(target, path) == Loaded()
    assert_same(target, target.state_dict() | {n: v for n, v in kept.items() if "fc" not in n})


def test_half_precision_becomes_the_models(
    trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "half.pth"
    torch.save({n: v.half() if v.is_floating_point() else v for n, v in trained.items()}, path)
    load_weights_file(target, path)
    name = "layer1.0.conv1.weight"
    assert target.state_dict()[name].dtype == torch.float32
    assert torch.equal(target.state_dict()[name], trained[name].half().float())


def test_partial_file_is_reported_by_kind(
    trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    tensors = dict(trained)
    gone = [name for name in tensors if name.startswith("layer4.0.bn1.")][:2]
    for name in gone:
        del tensors[name]
    tensors["layer1.0.conv1.weight"] = tensors["layer1.0.conv1.weight"][:1]
    tensors["extra.a"] = torch.zeros(1)
    before = target.state_dict()["layer1.0.conv1.weight"].clone()
    path = tmp_path / "partial.pth"
    torch.save(tensors, path)
    (notice,) = load_weights_file(target, path).notices
    total = len([n for n in target.state_dict() if "num_batches" not in n or n in tensors])
    assert f"partial.pth: {total - 3} of {total} backbone tensors loaded" in notice
    assert f"2 tensors missing in the file: {', '.join(gone)}" in notice
    assert "1 tensor of another shape: layer1.0.conv1.weight" in notice
    assert "1 tensor unknown to the backbone: extra.a" in notice
    assert torch.equal(target.state_dict()["layer1.0.conv1.weight"], before)


def test_long_reports_are_cut() -> None:
    report = compare({f"x{i}": torch.zeros(1) for i in range(12)}, {})
    assert report.lines() == [
        "12 tensors unknown to the backbone: x0, x1, x2, x3, x4 and 7 more",
    ]


def test_another_architecture_is_refused(target: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(build("test_vit").state_dict(), path)
    before = {n: v.clone() for n, v in target.state_dict().items()}
    with pytest.raises(UserError, match="is of another architecture") as caught:
        load_weights_file(target, path)
    assert caught.value.exit_code == 1
    total = len([n for n in before if "num_batches" not in n])
    assert f"0 of {total} of the backbone's tensors fit" in caught.value.where
    assert "--backbone" in caught.value.remedy
    assert_same(target, before)


def test_exactly_half_is_enough(trained: Tensors, target: nn.Module, tmp_path: Path) -> None:
    names = list(target.state_dict())
    counters = [name for name in names if "num_batches" in name]
    others = [name for name in names if name not in counters]
    kept = counters[: len(others) % 2]  # a counter counts when the file has it: an even number
    half = (len(others) + len(kept)) // 2
    path = tmp_path / "part.pth"
    torch.save({name: trained[name] for name in [*kept, *others][:half]}, path)
    (notice,) = load_weights_file(target, path).notices
    assert f"{half} of {2 * half} backbone tensors loaded" in notice
    torch.save({name: trained[name] for name in [*kept, *others][: half - 1]}, path)
    with pytest.raises(UserError, match="another architecture"):
        load_weights_file(target, path)


def test_values_that_are_not_finite_are_refused(
    trained: Tensors, target: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "diverged.pth"
    torch.save(trained | {"layer1.0.conv1.weight": trained["layer1.0.conv1.weight"] / 0}, path)
    with pytest.raises(UserError, match="not finite") as caught:
        load_weights_file(target, path)
    assert caught.value.where == "layer1.0.conv1.weight"


def test_position_embeddings_are_resampled(tmp_path: Path) -> None:
    source = build("test_vit", seed=1, img_size=64).state_dict()
    target = build("test_vit", seed=2, img_size=96)
    path = tmp_path / "vit64.pth"
    torch.save(source, path)
    assert load_weights_file(target, path) == Loaded()
    prefix = 1 if source["pos_embed"].shape[1] % 2 else 0
    expected = resample_abs_pos_embed(source["pos_embed"], (6, 6), num_prefix_tokens=prefix)
    torch.testing.assert_close(target.state_dict()["pos_embed"], expected)
    assert torch.equal(target.state_dict()["norm.weight"], source["norm.weight"])


class Runs:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "torch old format", "pickle", "protocol 4"])
def test_code_in_a_pickle_never_runs(how: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "ran"
    loaded = {"state_dict": {"a": torch.zeros(1)}, "x": Runs(f"touch {mark}")}
    if how.startswith("torch"):
        torch.save(loaded, path, _use_new_zipfile_serialization=how == "torch")
    else:
        plain = {"x": Runs(f"touch {mark}")}
        path.write_bytes(pickle.dumps(plain, protocol=4 if how == "protocol 4" else 2))
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert not mark.exists()
    assert caught.value.exit_code == 1
    assert "weights_only" not in str(caught.value)  # no advice to load it unsafely
    if how.startswith("torch"):
        assert "more than plain tensors" in caught.value.what
        assert re.search(r"(posix|nt|os)\.system", caught.value.where)


def damaged(kind: str, path: Path, trained: Tensors) -> None:
    if kind.startswith("safetensors"):
        safetensors.torch.save_file(trained, path)
    else:
        torch.save(trained, path)
    data = path.read_bytes()
    changed = {
        "truncated": data[: len(data) // 2],
        "one byte": data[:1],
        "head only": data[:40],
        "flipped": data[:64] + bytes(64) + data[128:],
        "text": b"these are no weights at all\n" * 20,
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "html": b"<!DOCTYPE html><html>404</html>",
    }
    path.write_bytes(changed[kind.partition(": ")[2]])


@pytest.mark.parametrize(
    "kind",
    [
        *("torch: truncated", "torch: one byte", "torch: head only", "torch: text"),
        *("torch: picture", "torch: html"),
        *("safetensors: truncated", "safetensors: head only", "safetensors: flipped"),
    ],
)
def test_damaged_files_get_a_clear_line(kind: str, trained: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    damaged(kind, path, trained)
    with pytest.raises(UserError, match="cannot be read as safetensors or as a torch") as caught:
        read_tensors(path)
    assert caught.value.exit_code == 1
    assert "damaged" in caught.value.remedy


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth does not exist") as caught:
        read_tensors(tmp_path / "none.pth")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="is not a file"):
        read_tensors(tmp_path)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match=r"empty\.pth is empty"):
        read_tensors(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict") as caught:
        read_tensors(tmp_path / "list.pth")
    assert "found list" in caught.value.where


def shapes(**sizes: tuple[int, ...]) -> Tensors:
    named = {name.replace("_", ".", 1): size for name, size in sizes.items()}
    return OrderedDict((n, torch.full(s, float(i))) for i, (n, s) in enumerate(named.items()))


def test_map_by_order() -> None:
    source = shapes(c_weight=(4, 3), b_weight=(4,), b_bias=(4,), fc_weight=(9, 4), fc_bias=(9,))
    target = shapes(conv_weight=(4, 3), norm_weight=(4,), norm_bias=(4,))
    mapped = map_by_order(source, target, "fc")
    assert {name: value.flatten()[0].item() for name, value in mapped.items()} == {
        "conv.weight": 0.0,
        "norm.weight": 1.0,
        "norm.bias": 2.0,
    }


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (shapes(c_weight=(4, 3)), "3 tensors instead of 1"),
        (shapes(c_weight=(4, 3), b_weight=(4,), b_bias=(5,)), r"b\.bias \(4,\) for b\.bias \(5,\)"),
        (shapes(c_weight=(4, 3), b_bias=(4,), b_weight=(4,)), r"b\.weight .* for b\.bias"),
    ],
)
def test_map_by_order_checks_every_tensor(target: Tensors, problem: str) -> None:
    source = shapes(c_weight=(4, 3), b_weight=(4,), b_bias=(4,), fc_weight=(9, 4))
    with pytest.raises(ValueError, match=problem):
        map_by_order(source, target, "fc")
