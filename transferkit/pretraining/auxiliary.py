"""Auxiliary tasks: labels that are made from the pictures themselves, or those of another set."""

import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from transferkit.config import Pretraining
from transferkit.errors import usage_error
from transferkit.pretraining.encoder import Encoder
from transferkit.pretraining.method import Batch, Method, Move, Phase

QUARTERS = 4
FEW_TILES_PX = 96
"""Below this input size a jigsaw has 2 x 2 tiles where the user does not say, above it 3 x 3."""
GREY = 0.5


def classifier(encoder: Encoder, classes: int, seed: int) -> nn.Linear:
    """Return a linear layer on an encoder's features, its random weights from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(encoder.num_features, classes)


def answered(logits: Tensor, labels: Tensor) -> Move:
    """Return the cross-entropy of answers (N, K) to labels (N,), and the share that is right."""
    right = (logits.detach().argmax(dim=1) == labels).float().mean()
    return Move(functional.cross_entropy(logits, labels), figures={"accuracy": float(right)})


def drawn_labels(batch: Batch, choices: int) -> Tensor:
    """Draw a label (N,) of 0..choices - 1 for each picture; in turn where they are measured on."""
    count, device = len(batch.labels), batch.labels.device
    if batch.held_out:
        return torch.arange(count, device=device) % choices
    return torch.randint(choices, (count,)).to(device)


def turned(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn pictures (N, C, H, H) to the left by so many quarters (N,) of a full turn each.

    Undone by `turned(..., -quarters)`.
    """
    found = torch.empty_like(images)
    for k in range(QUARTERS):
        chosen = quarters % QUARTERS == k
        found[chosen] = torch.rot90(images[chosen], k, (2, 3))
    return found


def rotation(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Say by how many quarters a picture is turned.

    Source: Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image
    Rotations", ICLR 2018.
    """
    size = encoder.preprocessing
    if size.height_px != size.width_px:
        raise usage_error(
            f"rotation needs a square input, not {size.height_px} x {size.width_px} px",
            "",
            "give --image-size",
        )
    head = classifier(encoder, QUARTERS, seed)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Move]:
        labels = drawn_labels(batch, QUARTERS)
        yield answered(head(encoder(turned(batch.views[0], labels))), labels)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        seen = turned(images, torch.arange(len(images), device=images.device))
        return {"turned_back": torch.stack([seen, turned(seen, -head(encoder(seen)).argmax(1))])}

    return Method(networks, (Phase("rotate", {"network": networks}, learn),), show=show)


def permutations(tiles: int, most: int) -> Tensor:
    """Return at most `most` orders (P, T) of T tiles that differ in many places, the usual first.

    Each is the one that differs most from the nearest so far, of all (T up to 4) or of 2,000 drawn
    ones. Source: Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving
    Jigsaw Puzzles", ECCV 2016, section 3.
    """
    if tiles <= 4:
        pool = torch.tensor(list(itertools.permutations(range(tiles))))
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randperm(tiles, generator=generator) for _ in range(2000)]
        pool = torch.stack([torch.arange(tiles), *drawn])
    chosen = [0]
    nearest = (pool != pool[0]).sum(dim=1)
    while len(chosen) < most and int(nearest.max()) > 0:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (pool != pool[chosen[-1]]).sum(dim=1))
    return pool[chosen]


def cut_tiles(images: Tensor, grid: int) -> Tensor:
    """Cut pictures (N, C, H, W) into tiles (N, G * G, C, H // G, W // G); rests are left out."""
    count, channels, height, width = images.shape
    high, wide = height // grid, width // grid
    kept = images[:, :, : high * grid, : wide * grid]
    rows = kept.reshape(count, channels, grid, high, grid, wide)
    return rows.permute(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, channels, high, wide)


def lay_tiles(tiles: Tensor, height_px: int, width_px: int) -> Tensor:
    """Lay tiles (N, G * G, C, h, w) out as pictures (N, C, H, W), what is left over grey."""
    count, number, channels, high, wide = tiles.shape
    grid = round(number**0.5)
    rows = tiles.reshape(count, grid, grid, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
    laid = rows.reshape(count, channels, grid * high, grid * wide)
    rest = (0, width_px - grid * wide, 0, height_px - grid * high)
    return functional.pad(laid, rest, value=GREY)


def shuffled(images: Tensor, orders: Tensor) -> Tensor:
    """Put the tiles of pictures (N, C, H, W) in orders (N, G * G): place i shows tile order[i].

    Undone by `shuffled(..., orders.argsort(dim=1))`, up to what a grid leaves over at the edges.
    """
    grid = round(orders.shape[1] ** 0.5)
    tiles = cut_tiles(images, grid)
    rows = torch.arange(len(images), device=images.device)[:, None]
    return lay_tiles(tiles[rows, orders], images.shape[2], images.shape[3])


def framed(images: Tensor, grid: int) -> Tensor:
    """Paint the edges of all tiles grey, so that lines that go on do not give the order away."""
    tiles = cut_tiles(images, grid).clone()
    edge = max(1, min(tiles.shape[3:]) // 16)
    for line in (slice(None, edge), slice(-edge, None)):
        tiles[..., line, :] = GREY
        tiles[..., :, line] = GREY
    return lay_tiles(tiles, images.shape[2], images.shape[3])


def jigsaw(encoder: Encoder, options: Pretraining, seed: int) -> Method:
    """Say in which of a set of orders the tiles of a picture lie.

    The shuffled picture is seen as a whole, so that any backbone can do it. Source: Noroozi and
    Favaro, ECCV 2016; as whole pictures: Carlucci et al., "Domain Generalization by Solving Jigsaw
    Puzzles", CVPR 2019.
    """
    size = encoder.preprocessing
    shorter = min(size.height_px, size.width_px)
    grid = options.grid or (2 if shorter < FEW_TILES_PX else 3)
    if shorter < 4 * grid:
        raise usage_error(
            f"--grid {grid} cuts {shorter} px into tiles of less than 4 px",
            "",
            "lower --grid or raise --image-size",
        )
    orders = permutations(grid * grid, options.permutations)
    head = classifier(encoder, len(orders), seed)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Move]:
        labels = drawn_labels(batch, len(orders))
        seen = shuffled(framed(batch.views[0], grid), orders.to(labels.device)[labels])
        yield answered(head(encoder(seen)), labels)

    def show(images: Tensor) -> Mapping[str, Tensor]:
        own = orders.to(images.device)
        seen = shuffled(framed(images, grid), own[torch.arange(len(images)) * 7 % len(own)])
        undone = shuffled(seen, own[head(encoder(seen)).argmax(1)].argsort(dim=1))
        return {"put_together": torch.stack([seen, undone])}

    return Method(networks, (Phase("jigsaw", {"network": networks}, learn),), show=show)


def supervised(encoder: Encoder, options: Pretraining, seed: int, classes: int = 2) -> Method:
    """Learn the classes of another labelled data set.

    Source: Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014.
    """
    head = classifier(encoder, classes, seed)
    networks = nn.ModuleDict({"encoder": encoder, "head": head})

    def learn(batch: Batch) -> Iterator[Move]:
        yield answered(head(encoder(batch.views[0])), batch.labels)

    return Method(networks, (Phase("classify", {"network": networks}, learn),))
