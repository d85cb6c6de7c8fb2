"""Pretext tasks with labels derived from the pictures, and supervised pretraining."""

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.config import Pretraining
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Objective, Phase

QUARTERS = 4
FEW_TILES_PX = 96
"""Below this input size, the default jigsaw grid is 2 x 2, else 3 x 3."""
GREY = 0.5


def classifier(encoder: Encoder, classes: int, seed: int) -> nn.Linear:
    """Return a linear layer on an encoder's features, its random weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(encoder.num_features, classes)


def classification(logits: Tensor, labels: Tensor) -> Objective:
    """Return the cross-entropy of logits (N, K) and labels (N,), with the accuracy."""
    right = (logits.detach().argmax(dim=1) == labels).float().mean()
    return Objective(functional.cross_entropy(logits, labels), figures={"accuracy": float(right)})


def random_labels(batch: Batch, choices: int) -> Tensor:
    """Draw labels (N,) of 0..choices - 1; for held-out pictures they cycle instead."""
    count, device = len(batch.labels), batch.labels.device
    if batch.held_out:
        return torch.arange(count, device=device) % choices
    return torch.randint(choices, (count,)).to(device)


def rotated(images: Tensor, quarters: Tensor) -> Tensor:
    """Rotate pictures (N, C, H, H) counterclockwise by (N,) quarter turns each.

    Undone by `rotated(..., -quarters)`.
    """
    outputs = torch.empty_like(images)
    for k in range(QUARTERS):
        chosen = quarters % QUARTERS == k
        outputs[chosen] = torch.rot90(images[chosen], k, (2, 3))
    return outputs


def rotation(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict the rotation of a picture, in quarter turns.

    Source: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image
    Rotations", ICLR 2018.
    """
    size = encoder.preprocessing
    if size.height_px != size.width_px:
        what = f"rotation needs a square input, not {size.height_px} x {size.width_px} px"
        raise usage_error(what, "", "give --image-size")
    head = classifier(encoder, QUARTERS, seed)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Objective]:
        labels = random_labels(batch, QUARTERS)
        yield classification(head(encoder(rotated(batch.views[0], labels))), labels)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        inputs = rotated(images, torch.arange(len(images), device=images.device))
        undone = rotated(inputs, -head(encoder(inputs)).argmax(1))
        return {"turned_back": torch.stack([inputs, undone])}

    return Method(networks, (Phase("rotate", {"network": networks}, learn),), show=show)


def permutations(tiles: int, most: int) -> Tensor:
    """Return up to `most` permutations (P, T) of T tiles, far apart, the identity first.

    Greedily picks the one with the largest Hamming distance to those picked so far, from all
    permutations (T up to 4) or from 2,000 random ones. Source: Noroozi and Favaro, "Unsupervised
    Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016, section 3.
    """
    if tiles <= 4:
        pool = torch.tensor(list(itertools.permutations(range(tiles))))
    else:
        generator = torch.Generator().manual_seed(0)
        candidates = [torch.randperm(tiles, generator=generator) for _ in range(2000)]
        pool = torch.stack([torch.arange(tiles), *candidates])
    chosen = [0]
    nearest = (pool != pool[0]).sum(dim=1)
    while len(chosen) < most and int(nearest.max()) > 0:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (pool != pool[chosen[-1]]).sum(dim=1))
    return pool[chosen]


def cut_tiles(images: Tensor, grid: int) -> Tensor:
    """Cut pictures (N, C, H, W) into tiles (N, G * G, C, H // G, W // G), cropping remainders."""
    count, channels, height, width = images.shape
    high, wide = height // grid, width // grid
    cropped = images[:, :, : high * grid, : wide * grid]
    rows = cropped.reshape(count, channels, grid, high, grid, wide)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def lay_tiles(tiles: Tensor, height_px: int, width_px: int) -> Tensor:
    """Assemble tiles (N, G * G, C, h, w) into pictures (N, C, H, W), padded with grey."""
    grid = round(tiles.shape[1] ** 0.5)
    laid = tiles.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    rest = (0, width_px - laid.shape[3], 0, height_px - laid.shape[2])
    return functional.pad(laid, rest, value=GREY)


def shuffled(images: Tensor, orders: Tensor) -> Tensor:
    """Permute the tiles of pictures (N, C, H, W) by orders (N, G * G): place i shows tile order[i].

    Undone by `shuffled(..., orders.argsort(dim=1))`, except for the remainders at the edges.
    """
    grid = round(orders.shape[1] ** 0.5)
    tiles = cut_tiles(images, grid)
    rows = torch.arange(len(images), device=images.device)[:, None]
    return lay_tiles(tiles[rows, orders], images.shape[2], images.shape[3])


def framed(images: Tensor, grid: int) -> Tensor:
    """Paint the edges of all tiles grey, so that continuing lines do not reveal the order."""
    tiles = cut_tiles(images, grid).clone()
    edge = max(1, min(tiles.shape[3:]) // 16)
    for line in (slice(None, edge), slice(-edge, None)):
        tiles[..., line, :] = tiles[..., :, line] = GREY
    return lay_tiles(tiles, images.shape[2], images.shape[3])


def jigsaw(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Predict which permutation was applied to the tiles of a picture.

    The input is the shuffled picture as a whole, so that any backbone can take it. Source: Noroozi
    and Favaro, ECCV 2016; as whole pictures: Carlucci et al., "Domain Generalization by Solving
    Jigsaw Puzzles", CVPR 2019.
    """
    size = encoder.preprocessing
    shorter = min(size.height_px, size.width_px)
    grid = options.grid or (2 if shorter < FEW_TILES_PX else 3)
    if shorter < 4 * grid:
        what = f"--grid {grid} cuts {shorter} px into tiles of less than 4 px"
        raise usage_error(what, "", "lower --grid or raise --image-size")
    orders = permutations(grid * grid, options.permutations)
    head = classifier(encoder, len(orders), seed)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Objective]:
        labels = random_labels(batch, len(orders))
        inputs = shuffled(framed(batch.views[0], grid), orders.to(labels.device)[labels])
        yield classification(head(encoder(inputs)), labels)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        table = orders.to(images.device)
        inputs = shuffled(framed(images, grid), table[torch.arange(len(images)) * 7 % len(table)])
        undone = shuffled(inputs, table[head(encoder(inputs)).argmax(1)].argsort(dim=1))
        return {"put_together": torch.stack([inputs, undone])}

    return Method(networks, (Phase("jigsaw", {"network": networks}, learn),), show=show)


def supervised(encoder: Encoder, options: Pretraining, seed: int, classes: int = 2) -> Method:
    """Learn the classes of another labelled data set.

    Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014.
    """
    head = classifier(encoder, classes, seed)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Objective]:
        yield classification(head(encoder(batch.views[0])), batch.labels)

    return Method(networks, (Phase("classify", {"network": networks}, learn),))
