"""The plots of a pretraining run. Each function returns a matplotlib Figure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from numpy.typing import NDArray

from transferkit.evaluation.plots import BLUE, FAINT, ORANGE, styled
from transferkit.events import NOT_FIGURES

Row = Mapping[str, Any]
Floats = NDArray[np.floating[Any]]
MOST_FILTERS = 64
THUMBNAIL_PX = 28


def picture_rows(rows: Floats, title: str = "") -> Figure:
    """Draw rows of pictures (R, C, 3, H, W), values 0..1, as one grid."""
    count, columns, _, height, width = rows.shape
    gap = 2
    sheet = np.ones((count, height + gap, columns, width + gap, 3))
    sheet[:, :height, :, :width] = rows.transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(count * (height + gap), -1, 3)[:-gap, :-gap]
    with styled():
        figure = Figure((1.0 * columns, 1.0 * count + 0.3), layout="constrained")
        axes = figure.subplots()
        axes.imshow(sheet.clip(0, 1), interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(title)
    return figure


def filters(weight: Floats) -> Figure | None:
    """Draw the filters of a first layer: weight (out, in, h, w), in = 1 or 3.

    Each is scaled from its smallest to its largest value. None if there is nothing to see: filters
    of a single pixel, or with other than 1 or 3 channels.
    """
    if weight.ndim != 4 or weight.shape[1] not in (1, 3) or min(weight.shape[2:]) < 2:
        return None
    shown = weight[:MOST_FILTERS].repeat(3 // weight.shape[1], axis=1)
    low = shown.min(axis=(1, 2, 3), keepdims=True)
    high = shown.max(axis=(1, 2, 3), keepdims=True)
    shown = (shown - low) / np.maximum(high - low, 1e-12)
    columns = min(len(shown), math.ceil(math.sqrt(2 * len(shown))))
    blank = -len(shown) % columns
    shown = np.concatenate([shown, np.ones((blank, *shown.shape[1:]))])
    return picture_rows(shown.reshape(-1, columns, *shown.shape[1:]), "first layer")


def figure_names(rows: Sequence[Row]) -> list[str]:
    """Return the columns of metrics.csv that are figures, without those of held-out pictures."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [n for n in names if n not in NOT_FIGURES and not n.startswith("val_")]


def pretraining_curves(rows: Sequence[Row]) -> Figure:
    """Draw every figure of metrics.csv over the epochs; val_<name> in the panel of <name>."""
    names = figure_names(rows)
    columns = min(3, len(names)) or 1
    lines = math.ceil(len(names) / columns) or 1
    epochs = [row["epoch"] for row in rows]
    with styled():
        figure = Figure((3.2 * columns, 2.3 * lines), layout="constrained")
        panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
        for axes, name in zip(panels, names, strict=False):
            for key, colour in ((f"val_{name}", BLUE), (name, ORANGE)):
                points = [(e, row[key]) for e, row in zip(epochs, rows, strict=True) if key in row]
                if points:
                    label = "held out" if key.startswith("val_") else "training"
                    axes.plot(*zip(*points, strict=True), color=colour, marker=".", label=label)
            if any(f"val_{name}" in row for row in rows):
                axes.legend(frameon=False, fontsize=7)
            axes.set_title(name.replace("_", " "))
            axes.set_xlabel("epoch")
        for axes in panels[len(names) :]:
            axes.set_axis_off()
    return figure


def feature_map(features: Floats, images: Floats) -> Figure:
    """Draw pictures at the t-SNE embedding of their features: similar ones lie together.

    features: (N, D), N >= 5. images: (N, 3, H, W), values 0..1.
    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008; scikit-learn's.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    places = TSNE(2, perplexity=perplexity, init="random", random_state=0).fit_transform(
        (features - features.mean(axis=0)) / (features.std() + 1e-12)
    )
    with styled():
        figure = Figure((7.5, 7.5), layout="constrained")
        axes = figure.subplots()
        axes.scatter(places[:, 0], places[:, 1], s=1, color=FAINT)
        step = max(1, math.ceil(max(images.shape[2:]) / (2 * THUMBNAIL_PX)))
        zoom = THUMBNAIL_PX / (max(images.shape[2:]) / step) * 0.72
        for place, image in zip(places, images, strict=True):
            small = OffsetImage(image.transpose(1, 2, 0)[::step, ::step].clip(0, 1), zoom=zoom)
            axes.add_artist(AnnotationBbox(small, tuple(place), frameon=False))
        axes.set_title("t-SNE of the features: similar pictures lie together")
        axes.set(xticks=[], yticks=[])
    return figure
