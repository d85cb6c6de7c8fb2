import io
import math

import numpy as np
import pytest
from matplotlib import rcParams

from transferkit.evaluation import glyphs
from transferkit.evaluation.plots import confusion, curves, learning_rates, spread
from transferkit.evaluation.reliability_plot import reliability
from transferkit.inference.calibration import calibrate

ROWS = [
    {
        "stage": stage,
        "stage_name": name,
        "epoch": epoch,
        "train_loss": 2.0 / number,
        "val_loss": 2.2 / number,
        "train_accuracy": 1 - 0.5 / number,
        "val_accuracy": 1 - 0.6 / number,
        "best": int(number in (1, 4)),
        "lr/head": 1e-3 / epoch,
        **({"lr/blocks.6": 5e-4 / epoch} if stage else {}),
    }
    for number, (stage, name, epoch) in enumerate(
        [(0, "head", 1), (0, "head", 2), (1, "top 1 of 7", 1), (1, "top 1 of 7", 2)], start=1
    )
]


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def line_of(axes, name):
    return next(line for line in axes.lines if line.get_label() == name)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_curves_draw_the_rows():
    figure = curves(ROWS)
    for axes, quantity in zip(figure.axes, ("loss", "accuracy"), strict=True):
        for split, name in (("train", "train"), ("val", "validation")):
            line = line_of(axes, name)
            assert line.get_xdata().tolist() == [1, 2, 3, 4]
            assert line.get_ydata().tolist() == [row[f"{split}_{quantity}"] for row in ROWS]
        assert {"train", "validation"} <= set(texts(axes))
    star = line_of(figure.axes[1], "best")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (4, 0.85)
    assert "kept: 85.0%" in texts(figure.axes[1])
    assert png(figure).startswith(b"\x89PNG")


def test_stages_are_bands_with_names():
    axes = curves(ROWS).axes[0]
    bands = [(p.get_x(), p.get_x() + p.get_width()) for p in axes.patches]
    assert bands == [(0.5, 2.5), (2.5, 4.5)]
    (upper,) = axes.child_axes
    assert [label.get_text() for label in upper.get_xticklabels()] == ["head", "top 1 of 7"]
    assert upper.get_xticks().tolist() == [1.5, 3.5]


def test_names_of_narrow_stages_become_numbers_with_a_key():
    rows = [{**ROWS[0]}] * 60 + [{**ROWS[2], "stage_name": "the last block group"}]
    figure = curves(rows)
    assert [t.get_text() for t in figure.axes[0].child_axes[0].get_xticklabels()] == ["1", "2"]
    assert figure.get_supxlabel() == "stages:  1 head,  2 the last block group"


def test_learning_rates_draw_the_rows():
    figure = learning_rates(ROWS)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    drawn = {
        name: [v for v in line_of(axes, name).get_ydata().tolist() if not math.isnan(v)]
        for name in ("head", "blocks.6")
    }
    assert drawn == {"head": [1e-3, 5e-4, 1e-3, 5e-4], "blocks.6": [5e-4, 2.5e-4]}
    # nan where a stage begins: the jump between stages is no line
    np.testing.assert_equal(line_of(axes, "head").get_xdata(), [1, 2, math.nan, 3, 4])
    assert texts(axes) == ["blocks.6 5e-4", "head 1e-3"]
    assert png(figure).startswith(b"\x89PNG")


def test_a_cycle_is_drawn_on_a_linear_axis_with_its_momentum_below():
    rows = [
        row | {"momentum": value} for row, value in zip(ROWS, (0.9, 0.8, 0.9, 0.8), strict=True)
    ]
    axes, below = learning_rates(rows, linear=True).axes
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    drawn = line_of(below, "momentum").get_ydata()
    np.testing.assert_equal(drawn, [0.9, 0.8, math.nan, 0.9, 0.8])
    assert below.get_xlim() == axes.get_xlim()


@pytest.mark.parametrize("rows", [[], ROWS[:1], [{"stage_name": "x"}], [{"val_loss": math.nan}]])
def test_few_or_empty_rows(rows):
    assert png(curves(rows)).startswith(b"\x89PNG")
    assert png(learning_rates(rows)).startswith(b"\x89PNG")


def test_confusion_shows_counts_and_shares():
    counts = np.array([[6, 2, 0], [0, 3, 1], [0, 0, 0]])
    figure = confusion(counts, ["heron", "stork", "crane"], title="Validation")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["heron", "stork", "crane"]
    written = {t.get_position(): t.get_text() for t in axes.texts[:-1]}
    assert written == {(0, 0): "6", (1, 0): "2", (1, 1): "3", (2, 1): "1"}
    right, wrong = (image.get_array() for image in axes.images)
    assert right.compressed().tolist() == [6 / 8, 3 / 4]
    assert wrong.compressed().tolist() == [2 / 8, 1 / 4]
    hatched = [p for p in axes.patches if p.get_hatch()]
    assert [p.get_y() for p in hatched] == [1.5]
    assert axes.get_title(loc="left") == "Validation"


@pytest.mark.parametrize("num_classes", [2, 60, 300])
def test_confusion_of_any_size(num_classes):
    figure = confusion(np.eye(num_classes, dtype=int), [f"class {k}" for k in range(num_classes)])
    (axes,) = figure.axes
    assert max(figure.get_size_inches()) < 16
    assert all(label.get_fontsize() >= 5 for label in axes.get_xticklabels())
    if num_classes <= 60:
        assert len(axes.get_yticklabels()) == num_classes
        assert len(axes.texts) == num_classes + 1
    else:
        assert len(axes.texts) == 1
    assert png(figure).startswith(b"\x89PNG")


def test_wild_class_names_are_drawn_without_warnings():
    figure = confusion(np.eye(4, dtype=int), ["a$b$", "\U0010fffe", "x\n\ty" * 30, "$x^{$"])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["a$b$", "class 1"]
    assert len(labels[2]) == glyphs.MOST_CHARACTERS
    png(figure)


def test_global_style_is_untouched():
    before = dict(rcParams)
    curves(ROWS)
    assert dict(rcParams) == before


def test_spread_keeps_distance_order_and_bounds():
    assert spread([0.2, 0.5], 0.1).tolist() == [0.2, 0.5]
    np.testing.assert_allclose(spread([0.5, 0.5, 0.5], 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(spread([0.0, 0.0, 1.0, 1.0], 0.1), [0.0, 0.1, 0.9, 1.0])
    np.testing.assert_allclose(spread([0.5, 0.52, 0.9], 0.1), [0.46, 0.56, 0.9])
    assert spread([], 0.1).tolist() == []
    crowded = spread(np.sort(np.random.default_rng(0).random(9)), 0.1)
    assert (np.diff(crowded) > 0.1 - 1e-9).all()
    assert 0 <= crowded[0] <= crowded[-1] <= 1


def test_the_reliability_diagram_shows_both_and_marks_only_bins_with_pictures() -> None:
    logits = np.random.default_rng(0).normal(scale=4, size=(60, 3))
    found = calibrate(logits, np.arange(60) % 3)
    figure = reliability(found.before.reliability, found.after.reliability)
    assert len(figure.axes) == 2
    for axes, data in zip(figure.axes, (found.before, found.after), strict=True):
        (points,) = axes.collections
        assert len(points.get_offsets()) == sum(b.count > 0 for b in data.reliability)
        assert f"ECE {data.ece:.3f}" in axes.get_title("left")
