import json
from dataclasses import replace
from pathlib import Path

from transferkit.config import Config, Stage
from transferkit.events import Event, Notice
from transferkit.verbs.finetune import finetune


def test_a_few_steps_of_each_stage_are_recorded(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(
        tiny_config,
        training=replace(tiny_config.training, profile=True),
        stages=(Stage("head", 2), Stage("all", 1)),
    )
    seen: list[Event] = []
    summary = finetune(config, tmp_path / "run", seen.append)
    plain = replace(config, training=replace(config.training, profile=False))
    finetune(plain, tmp_path / "plain", lambda _: None)
    folder = summary.files["profile"]
    assert any(isinstance(e, Notice) and e.text.startswith(str(folder)) for e in seen)
    traces = {
        path.name: {event["name"]: event for event in json.loads(path.read_text())["traceEvents"]}
        for path in folder.iterdir()
    }
    assert traces.keys() == {"1-head.json", "2-all.json"}
    assert "aten::convolution" in traces["2-all.json"]
    assert "aten::convolution" not in traces["1-head.json"]  # the head alone, on cached features
    assert "aten::linear" in traces["1-head.json"]
    assert all(any("Optimizer.step" in name for name in names) for names in traces.values())
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "plain"))
    assert a == b  # looking changes nothing
    assert not (tmp_path / "plain" / "profile").exists()


def test_an_epoch_of_one_step_is_recorded_too(tiny_config: Config, tmp_path: Path) -> None:
    training = replace(tiny_config.training, profile=True, batch_size=100)
    config = replace(tiny_config, training=training, stages=(Stage(1, 1),))
    summary = finetune(config, tmp_path / "run", lambda _: None)
    (trace,) = summary.files["profile"].iterdir()
    assert "aten::convolution" in trace.read_text()
