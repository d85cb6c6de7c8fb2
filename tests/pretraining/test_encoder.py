import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.pretraining.encoder import Encoder


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("resnet18", 32, (512, 1, 1)),
        ("test_vit", 32, (64, 2, 2)),
        ("cnn", 32, (256, 2, 2)),
        ("mlp", 32, (128, 1, 1)),
    ],
)
def test_maps_of_every_kind_of_network_are_channels_height_width(
    name: str, size: int, shape: tuple[int, ...]
) -> None:
    encoder = Encoder(create_backbone(name, pretrained=False, image_size=size)).eval()
    assert encoder.map_shape == shape
    with torch.no_grad():
        assert encoder.maps(images()).shape[1:] == shape


def test_maps_average_to_the_features_where_the_backbone_pools_them() -> None:
    encoder = Encoder(create_backbone("cnn", pretrained=False, image_size=32)).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder.maps(images()).mean(dim=(2, 3)), encoder(images()))


def test_pictures_are_normalised_as_the_backbone_wants() -> None:
    backbone = create_backbone("resnet18", pretrained=False, image_size=32)
    mean, std = (torch.tensor(getattr(backbone.preprocessing, n)) for n in ("mean", "std"))
    by_hand = (images() - mean[:, None, None]) / std[:, None, None]
    encoder = Encoder(backbone).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images()), backbone.model(by_hand))
