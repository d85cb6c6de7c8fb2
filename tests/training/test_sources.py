import shutil
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.backbones.engine import Engine
from transferkit.config import Augmentation, BackboneOptions, Config, Data, Stage, Training
from transferkit.data.decode import decode
from transferkit.data.loader import CLEAN
from transferkit.events import Event, Notice, Progress
from transferkit.finetuning.preparation import prepare
from transferkit.training import cache_filling
from transferkit.training.cache_choice import cache_bytes, choose_base, is_cached
from transferkit.training.cache_filling import row_shape
from transferkit.training.cache_handles import CacheHandles
from transferkit.training.parts import Parts
from transferkit.training.sources import Source, open_source

TRAIN, VAL, VIEWS = 18, 12, 2
ROWS = TRAIN * VIEWS + VAL


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return replace(
        tiny_config, stages=(Stage("head", 1), Stage(1, 1), Stage(2, 1), Stage("all", 1))
    )


@pytest.fixture
def opened() -> Iterator[list[CacheHandles]]:
    made: list[CacheHandles] = []
    yield made
    for handles in made:
        handles.close()


@pytest.fixture
def parts(config: Config, opened: list[CacheHandles]) -> Parts:
    return ready(config, opened)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all batches that an engine has run."""
    sizes: list[int] = []
    make = cache_filling.make_engine

    def counting(*arguments: Any) -> Engine:
        engine = make(*arguments)

        def run(inputs: torch.Tensor) -> torch.Tensor:
            sizes.append(len(inputs))
            return engine.run(inputs)

        return replace(engine, run=run)

    monkeypatch.setattr(cache_filling, "make_engine", counting)
    return sizes


def ready(config: Config, opened: list[CacheHandles]) -> Parts:
    parts = prepare(config, lambda event: None)
    opened.append(parts.handles)
    return parts


def drain(generator: Generator[Event, None, Source]) -> tuple[list[Event], Source]:
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as end:
            return events, end.value


def opening(parts: Parts, number: int, clean_first: bool = False) -> Generator[Event, None, Source]:
    base, _ = choose_base(parts, parts.plan.stages)
    return open_source(parts, parts.plan.stages[number], base, clean_first)


def open_stage(parts: Parts, number: int) -> Source:
    return drain(opening(parts, number))[1]


def views_of(parts: Parts) -> torch.Tensor:
    """Every view of every training picture, then the validation pictures, made one by one."""
    material = parts.material
    wanted = [(p, number) for p in material.train for number in range(VIEWS)]
    made = [
        material.maker.views(parts.index.file(position), position, (number,))
        for position, number in [*wanted, *((p, CLEAN) for p in material.val)]
    ]
    return torch.from_numpy(np.concatenate(made))


def read_all(source: Source) -> torch.Tensor:
    """All training rows, view by view of each picture, then the validation rows."""
    positions, numbers = np.divmod(np.arange(TRAIN * VIEWS), VIEWS)
    train = list(source.train_inputs([(positions, numbers)]))
    return torch.cat([*train, *source.val_inputs()])


def test_rows_are_the_activations_of_the_views(parts: Parts) -> None:
    top = len(parts.chain.groups)
    assert choose_base(parts, parts.plan.stages) == (top - 2, [])
    images = parts.classifier.normalize(views_of(parts))
    assert len(images) == ROWS == parts.material.num_rows
    for number, boundary in ((0, top), (1, top - 1), (2, top - 2)):
        source = open_stage(parts, number)
        assert source.cached
        with torch.no_grad():
            expected = parts.chain.trunk(boundary)(images)
        found = read_all(source)
        assert found.shape == (ROWS, *row_shape(parts, boundary))
        assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
        with torch.no_grad():
            logits = source.network.eval()(found)
            whole = parts.classifier.eval()(views_of(parts))
        assert torch.allclose(logits, whole, atol=1e-5)


def test_live_pictures_are_the_views(parts: Parts) -> None:
    source = open_stage(parts, 3)
    assert (source.cached, source.network) == (False, parts.classifier)
    assert torch.equal(read_all(source), views_of(parts))
    picks = [(np.array([3, 17, 3]), np.array([1, 0, 1])), (np.array([0]), np.array([1]))]
    batches = list(source.train_inputs(picks))
    every = views_of(parts)
    assert torch.equal(batches[0], every[[7, 34, 7]])
    assert torch.equal(batches[1], every[[1]])


@pytest.mark.parametrize("enabled", [True, False])
def test_live_pictures_are_decoded_once_where_a_cache_is_allowed(
    config: Config, opened: list[CacheHandles], monkeypatch: pytest.MonkeyPatch, enabled: bool
) -> None:
    changed = replace(config, cache=replace(config.cache, enabled=enabled))
    parts = ready(changed, opened)
    decoded: list[Path] = []

    def counting(path: Path, *options: Any) -> Any:
        decoded.append(path)
        return decode(path, *options)

    monkeypatch.setattr("transferkit.data.loader.decode", counting)
    source = open_stage(parts, 3)
    first, again = (torch.cat(list(source.val_inputs())) for _ in range(2))
    assert torch.equal(first, again)
    assert len(decoded) == len(parts.material.val) * (1 if enabled else 2)


def test_half_precision_rows_are_rounded_only(config: Config, opened: list[CacheHandles]) -> None:
    half = replace(config, cache=replace(config.cache, dtype="float16"))
    found = []
    for each in (config, half):
        parts = ready(each, opened)
        found.append(read_all(open_stage(parts, 2)))
    assert torch.equal(found[0].half().float(), found[1])


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_fill_ends_with_the_same_bytes(
    stop: int, config: Config, opened: list[CacheHandles], runs: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cache_filling, "EXTRACTION_ROWS", 9)  # 4 pictures with 2 views each
    contents = []
    for name in ("whole", "parts"):
        each = replace(config, cache=replace(config.cache, dir=tmp_path / name))
        parts = ready(each, opened)
        if name == "parts":
            runs.clear()
            for count, _ in enumerate(opening(parts, 2), start=1):
                if count == stop:
                    break
            parts.handles.close()
            parts = ready(each, opened)
        events, _ = drain(opening(parts, 2))
        assert all(isinstance(event, Progress) for event in events)
        (file,) = (tmp_path / name).glob("*/rows.bin")
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    assert sum(runs) == ROWS  # no row was computed twice


@pytest.mark.parametrize("number", [0, 2])
def test_training_can_begin_on_the_clean_views(
    number: int, config: Config, opened: list[CacheHandles], runs: list[int], tmp_path: Path
) -> None:
    contents = []
    for name, clean_first in (("whole", False), ("clean first", True)):
        each = replace(config, cache=replace(config.cache, dir=tmp_path / name))
        parts = ready(each, opened)
        runs.clear()
        _, source = drain(opening(parts, number, clean_first))
        if clean_first:
            assert sum(runs) == (TRAIN + VAL) * (2 if number == 0 else 1)
            everyone = (np.arange(TRAIN), np.full(TRAIN, CLEAN))
            clean = torch.cat([*source.train_inputs([everyone]), *source.val_inputs()])
            assert source.rest is not None
            assert list(source.rest())
            found = read_all(source)
            assert torch.equal(clean[:TRAIN], found[: TRAIN * VIEWS : VIEWS])
            assert torch.equal(clean[TRAIN:], found[TRAIN * VIEWS :])
        assert source.rest is None or clean_first
        contents.append(read_all(source))
    assert torch.equal(*contents)
    _, again = drain(opening(parts, number, clean_first=True))
    assert again.rest is None  # all is there


@pytest.mark.parametrize("row", [0, 7, 21, 37, ROWS - 1])
@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_row_is_computed_anew(
    row: int, number: int, config: Config, opened: list[CacheHandles],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cache_filling, "EXTRACTION_ROWS", 9)  # a row lies within a batch
    monkeypatch.setattr(cache_filling, "DERIVATION_ROWS", 8)
    parts = ready(config, opened)
    before = read_all(open_stage(parts, number))
    _, cache = parts.handles.caches[parts.plan.stages[number].boundary]
    file, size = cache.folder / "rows.bin", cache.row_bytes
    parts.handles.close()
    damaged = bytearray(file.read_bytes())
    damaged[row * size + 2] ^= 16
    file.write_bytes(damaged)
    parts = ready(config, opened)
    assert torch.equal(read_all(open_stage(parts, number)), before)
    _, cache = parts.handles.caches[parts.plan.stages[number].boundary]
    assert cache.complete


def test_a_second_run_computes_nothing(
    config: Config, opened: list[CacheHandles], runs: list[int]
) -> None:
    first = ready(config, opened)
    found = [read_all(open_stage(first, number)) for number in (0, 1, 2)]
    assert sum(runs) == 3 * ROWS
    runs.clear()
    second = ready(config, opened)  # while the first one still holds the caches
    again = [read_all(open_stage(second, number)) for number in (0, 1, 2)]
    assert runs == []
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_budget_that_holds_the_caches_once_is_enough_for_a_second_run(
    config: Config, opened: list[CacheHandles], runs: list[int]
) -> None:
    parts = ready(config, opened)
    top = len(parts.chain.groups)
    needed = sum(cache_bytes(parts, b) for b in (top, top - 1, top - 2))
    tight = replace(config, cache=replace(config.cache, budget=str(needed + 20_000)))
    for _ in range(2):
        parts = ready(tight, opened)
        assert choose_base(parts, parts.plan.stages)[1] == []
        for number in (0, 1, 2):
            open_stage(parts, number)
        parts.handles.close()
    assert sum(runs) == 3 * ROWS


def test_stages_that_do_not_fit_the_budget_train_live(
    config: Config, opened: list[CacheHandles]
) -> None:
    parts = ready(config, opened)
    top = len(parts.chain.groups)
    sizes = {b: cache_bytes(parts, b) for b in (top, top - 1, top - 2)}
    assert sizes[top] == ROWS * parts.backbone.num_features * 4
    for held, names in (([top, top - 1], ["top 2"]), ([top], ["top 2", "top 1"])):
        budget = str(sum(sizes[b] for b in held))
        small = ready(replace(config, cache=replace(config.cache, budget=budget)), opened)
        base, notices = choose_base(small, small.plan.stages)
        assert [n.text.split(":")[0] for n in notices] == [f"stage {n} trains live" for n in names]
        assert all(n.warning and "allowed" in n.text for n in notices)
        cached = [is_cached(small, stage, base) for stage in small.plan.stages]
        assert cached == [True, top - 1 in held, False, False]
    none = ready(replace(config, cache=replace(config.cache, budget="1")), opened)
    assert len(choose_base(none, none.plan.stages)[1]) == 3
    assert not open_stage(none, 0).cached


def test_without_a_cut_only_the_head_is_cached(config: Config, opened: list[CacheHandles]) -> None:
    parts = ready(config, opened)
    parts = replace(parts, chain=replace(parts.chain, verified=False))
    base, _ = choose_base(parts, parts.plan.stages)
    cached = [is_cached(parts, stage, base) for stage in parts.plan.stages]
    assert cached == [True, False, False, False]
    off = ready(replace(config, cache=replace(config.cache, enabled=False)), opened)
    assert choose_base(off, off.plan.stages) == (None, [])


def test_the_key_changes_with_everything_that_changes_the_rows(
    config: Config, opened: list[CacheHandles], tmp_path: Path, pictures: Path
) -> None:
    def key(changed: Config) -> str:
        return cache_filling._base_key(ready(changed, opened), 4)

    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    moved = replace(config, data=Data(path=copy))
    first = key(config)
    assert key(config) == first
    assert key(moved) == first  # contents count, not the place
    assert key(replace(config, training=Training(lr=0.5, batch_size=3))) == first
    assert key(replace(config, stages=(Stage(1, 9),))) == first
    found = {
        "level": key(replace(config, augment=Augmentation("medium", views=1))),
        "flip": key(replace(config, augment=Augmentation("light", flip=False, views=1))),
        "views": key(replace(config, augment=Augmentation("light", views=2))),
        "size": key(replace(config, backbone=replace(config.backbone, image_size=48))),
        "framing": key(replace(config, backbone=replace(config.backbone, crop="squash"))),
        "share": key(replace(config, backbone=replace(config.backbone, crop_share=0.6))),
        "seed": key(replace(config, training=Training(seed=1))),
        "background": key(replace(config, data=replace(config.data, background="red"))),
        "dtype": key(replace(config, cache=replace(config.cache, dtype="float16"))),
        "engine": key(replace(config, device=replace(config.device, engine="onnx"))),
        "model": key(replace(config, backbone=BackboneOptions("test_resnet", False, None, 32))),
        "boundary": cache_filling._base_key(ready(config, opened), 3),
    }
    picture = next(copy.glob("train/*/0.png"))
    Image.open(picture).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(picture)
    found["picture"] = key(moved)
    assert len({first, *found.values()}) == 14, found


def test_the_key_sees_the_weights_below_the_boundary_only(parts: Parts) -> None:
    def keys() -> tuple[str, str]:
        base_key, derived_key = cache_filling._base_key, cache_filling._derived_key
        return base_key(parts, 4), derived_key(parts, "k", 4, 5)

    before = keys()
    with torch.no_grad():
        parts.classifier.head[-1].bias += 1
        parts.backbone.model.get_submodule("blocks.4")[0].conv_pw.weight[0, 0] += 1e-3
    assert keys() == before
    bns = [m for m in parts.backbone.model.get_submodule("blocks.3").modules()
           if isinstance(m, torch.nn.BatchNorm2d)]  # fmt: skip
    bns[0].running_mean[0] += 1e-3
    assert keys()[0] == before[0]
    assert keys()[1] != before[1]
    stem: Any = parts.backbone.model.get_submodule("conv_stem")
    stem.weight.data[0, 0, 0, 0] += 1e-3
    assert keys()[0] != before[0]


def test_the_key_sees_the_versions(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_filling._base_key(parts, 4)
    real = cache_filling.version
    monkeypatch.setattr(cache_filling, "version", lambda n: "0" if n == "pillow" else real(n))
    assert cache_filling._base_key(parts, 4) != before


def test_changed_blocks_get_a_new_cache(parts: Parts, runs: list[int]) -> None:
    before = read_all(open_stage(parts, 0))
    runs.clear()
    with torch.no_grad():
        for parameter in parts.backbone.model.get_submodule("blocks.4").parameters():
            parameter *= 1.3
    after = read_all(open_stage(parts, 0))
    assert sum(runs) == ROWS  # derived again; the trunk below is as it was
    with torch.no_grad():
        expected = parts.classifier.eval().features(views_of(parts))
    assert torch.allclose(after, expected, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize("broken", ["raises", "wrong"])
def test_a_broken_export_is_told_and_torch_fills_the_cache(
    broken: str, config: Config, opened: list[CacheHandles], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ready(config, opened)
    expected = read_all(open_stage(plain, 2))

    def runner(network: torch.nn.Module, example: torch.Tensor) -> Any:
        if broken == "raises":
            raise RuntimeError("cannot export")
        return lambda inputs: network(inputs) * 2

    monkeypatch.setattr("transferkit.backbones.engine.onnx_runner", runner)
    parts = ready(replace(config, device=replace(config.device, engine="onnx")), opened)
    events, source = drain(opening(parts, 2))
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.warning
    told = (
        "export failed (cannot export)" if broken == "raises" else "differs from torch by 1.0e+00"
    )
    assert told in notice.text
    assert torch.equal(read_all(source), expected)


def test_onnx_fills_the_same_numbers(config: Config, opened: list[CacheHandles]) -> None:
    found = []
    for engine in ("torch", "onnx"):
        parts = ready(replace(config, device=replace(config.device, engine=engine)), opened)
        events, source = drain(opening(parts, 1))
        assert not [event for event in events if isinstance(event, Notice)]
        found.append(read_all(source))
    scale = found[0].abs().max().item()
    assert torch.allclose(found[0], found[1], atol=1e-4 * scale)
    assert not torch.equal(found[0], found[1])  # it was really the other engine
