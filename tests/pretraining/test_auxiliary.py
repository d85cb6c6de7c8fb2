from typing import Any

import pytest
import torch

from transferkit.backbones.create import create_backbone
from transferkit.config import Pretraining
from transferkit.errors import UserError
from transferkit.pretraining.auxiliary import (
    cut_tiles,
    framed,
    jigsaw,
    lay_tiles,
    permutations,
    random_labels,
    rotated,
    rotation,
    shuffled,
    supervised,
)
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch


def encoder(size: int = 32) -> Encoder:
    return Encoder(create_backbone("mlp", pretrained=False, image_size=size))


def batch(count: int = 8, held_out: bool = False, labels: torch.Tensor | None = None) -> Batch:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    return Batch((images,), given, 0.0, held_out)


def test_turning_is_undone_by_its_label() -> None:
    images = torch.rand(8, 3, 6, 6)
    labels = torch.arange(8) % 4
    seen = rotated(images, labels)
    assert torch.equal(rotated(seen, -labels), images)
    assert torch.equal(seen[0], images[0])
    assert torch.equal(seen[2], images[2].flip(1, 2))
    assert torch.equal(seen[1], images[1].transpose(1, 2).flip(1))  # to the left
    assert not torch.equal(seen[3], images[3])


@pytest.mark.parametrize(("grid", "side"), [(2, 8), (3, 12), (3, 14), (4, 33)])
def test_shuffling_is_undone_by_its_label(grid: int, side: int) -> None:
    images = torch.rand(6, 3, side, side)
    orders = permutations(grid * grid, 6)
    seen = shuffled(images, orders)
    whole = side // grid * grid
    undone = shuffled(seen, orders.argsort(dim=1))
    assert torch.equal(undone[:, :, :whole, :whole], images[:, :, :whole, :whole])
    assert torch.equal(seen[0, :, :whole, :whole], images[0, :, :whole, :whole])  # the usual order
    assert (seen[:, :, whole:] == 0.5).all()
    tile = side // grid
    first = seen[1, :, :tile, :tile]
    row, column = divmod(int(orders[1, 0]), grid)
    taken = images[1, :, row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
    assert torch.equal(first, taken)


def test_tiles_are_laid_out_as_they_were_cut() -> None:
    images = torch.rand(2, 3, 9, 12)
    assert torch.equal(lay_tiles(cut_tiles(images, 3), 9, 12), images)
    seen = framed(images, 3)
    assert torch.equal(seen[:, :, 1::3, 1::4], images[:, :, 1::3, 1::4])
    assert (seen[:, :, 0] == 0.5).all()
    assert (seen[:, :, :, 3] == 0.5).all()


@pytest.mark.parametrize(("tiles", "most", "apart"), [(4, 4, 4), (9, 64, 6), (16, 64, 12)])
def test_orders_lie_far_apart(tiles: int, most: int, apart: int) -> None:
    found = permutations(tiles, most)
    assert found.shape == (most, tiles)
    assert (found.sort(dim=1).values == torch.arange(tiles)).all()
    assert torch.equal(found[0], torch.arange(tiles))
    different = (found[:, None] != found[None]).sum(dim=2) + tiles * torch.eye(most).long()
    assert int(different.min()) >= apart
    assert torch.equal(permutations(tiles, most), found)


def test_all_orders_of_four_tiles() -> None:
    assert len(permutations(4, 64)) == 24


@pytest.mark.parametrize("make", [rotation, jigsaw])
def test_a_task_is_scored_by_its_labels(make: Any) -> None:
    """A classifier that always answers 0 is right as often as 0 is the label."""
    method = make(encoder(), Pretraining(), 0)
    head = method.networks["head"]
    torch.nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(-10 * (torch.arange(head.out_features) > 0))
    (move,) = method.phases[0].learn(batch(head.out_features, held_out=True))
    assert move.figures["accuracy"] == pytest.approx(1 / head.out_features)
    torch.manual_seed(3)
    labels = random_labels(batch(16), head.out_features)
    torch.manual_seed(3)
    (move,) = method.phases[0].learn(batch(16))
    assert move.figures["accuracy"] == pytest.approx(float((labels == 0).float().mean()))
    logits = head.bias.detach().expand(16, -1)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(move.loss.detach(), expected)


@pytest.mark.parametrize("make", [rotation, jigsaw])
def test_the_shown_are_pairs_of_pictures(make: Any) -> None:
    shown = make(encoder(), Pretraining(), 0).show(torch.rand(5, 3, 32, 32))
    assert all(rows.shape == (2, 5, 3, 32, 32) for rows in shown.values())


def test_the_grid_decides_over_the_orders() -> None:
    sizes = [
        jigsaw(encoder(), Pretraining(grid=grid), 0).networks["head"].out_features  # type: ignore[index]
        for grid in (None, 2, 3)
    ]
    assert sizes == [24, 24, 64]
    fewer = jigsaw(encoder(), Pretraining(permutations=5), 0)
    assert fewer.networks["head"].out_features == 5  # type: ignore[index]
    with pytest.raises(UserError, match="tiles of less than 4 px"):
        jigsaw(encoder(16), Pretraining(grid=5), 0)


def test_supervised_learns_the_given_classes() -> None:
    method = supervised(encoder(), Pretraining(), 0, classes=5)
    labels = torch.tensor([4, 0, 1, 2])
    (move,) = method.phases[0].learn(batch(4, labels=labels))
    networks: Any = method.networks
    logits = networks["head"](networks["encoder"](batch(4).views[0]))
    assert logits.shape == (4, 5)
    torch.testing.assert_close(move.loss, torch.nn.functional.cross_entropy(logits, labels))
