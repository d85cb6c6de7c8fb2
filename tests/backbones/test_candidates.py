"""The backbones to choose among: their facts against timm, and what is found without a hub."""

from pathlib import Path

import pytest

from transferkit.backbones import candidates
from transferkit.backbones.candidates import KNOWN, find_candidates
from transferkit.backbones.create import EMBEDDED, Embedded, pretrained_config
from transferkit.backbones.models import count_parameters


def test_what_is_known_of_them_is_what_timm_says() -> None:
    for name, known in KNOWN.items():
        assert pretrained_config(name)["license"] == known.license, name
    sizes = [known.parameters for known in KNOWN.values()]
    assert sizes == sorted(sizes)
    assert 1 < sizes[0] < sizes[-1] < 90
    small = [name for name, known in KNOWN.items() if known.parameters < 10]
    counted = {name: round(count_parameters(name), 2) for name in small}
    assert counted == {name: KNOWN[name].parameters for name in small}


def test_without_a_hub_there_is_what_is_installed_or_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedded, "path", lambda self: None if self.extra else tmp_path)
    monkeypatch.setattr(candidates, "why_unreachable", lambda address: "no route")
    for name in ("resnet18.a1_in1k", "no_model.of_timm", "tf_efficientnet_lite0.in1k"):
        (tmp_path / f"models--timm--{name}").mkdir()
    monkeypatch.setattr(candidates.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(candidates, "cached_weights", lambda config: tmp_path)
    assert find_candidates() == (["tf_efficientnet_lite0", "resnet18.a1_in1k"], "no route")
    monkeypatch.setattr(candidates, "LARGEST_BYTES", -1)
    assert find_candidates() == (["tf_efficientnet_lite0"], "no route")
    monkeypatch.setattr(candidates, "why_unreachable", lambda address: "")
    found, reason = find_candidates()
    assert found == [name for name in KNOWN if name not in EMBEDDED or name.endswith("lite0")]
    assert reason == ""
