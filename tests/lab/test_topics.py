"""Every experiment runs, has the effect that theory predicts, and repeats to the bit."""

import functools
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from transferkit.explain import read_page, topics
from transferkit.lab import signals, steps, trial
from transferkit.lab.finding import Finding, Line, Panel, draw
from transferkit.lab.topics import TOPICS

TINY = 0.1


@pytest.fixture(autouse=True, scope="module")
def _few_digits() -> Iterator[None]:
    every = trial.load_digits()
    few = SimpleNamespace(images=every.images[:360], target=every.target[:360])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "load_digits", lambda: few)
        for module in (signals, steps):  # one rate is enough
            patch.setattr(module, "best_of", lambda rates, *rest: trial.best_of(rates[:1], *rest))
        trial.digits.cache_clear()
        yield
    trial.digits.cache_clear()


@functools.cache
def found(topic: str) -> Finding:
    return TOPICS[topic].run(TINY)


def line(topic: str, panel: int, name: str, dashed: bool = False) -> np.ndarray:
    lines = found(topic).panels[panel].lines
    return np.array(next(ln.y for ln in lines if ln.name == name and ln.dashed == dashed))


@pytest.mark.parametrize("topic", TOPICS)
def test_an_experiment_has_a_figure_and_three_sentences(topic: str) -> None:
    finding = found(topic)
    assert len(finding.sentences) == 3
    assert all(text.endswith(".") and "nan" not in text for text in finding.sentences)
    figure = draw(finding)
    assert [axes.get_title("left") for axes in figure.axes] == [p.title for p in finding.panels]


@pytest.mark.parametrize("topic", ["dropout", "pretraining"])  # both draw random numbers
def test_a_repeated_experiment_has_the_same_bits(topic: str) -> None:
    again = TOPICS[topic].run(TINY)
    assert again.sentences == found(topic).sentences
    for panel, first in zip(again.panels, found(topic).panels, strict=True):
        assert (panel.lines, panel.bars) == (first.lines, first.bars)


def test_sigmoid_gradients_vanish_faster_than_the_bound_and_relu_s_do_not() -> None:
    logistic, relu = line("activations", 0, "logistic"), line("activations", 0, "relu")
    assert logistic[0] / logistic[-1] < 4.0 ** -(len(logistic) - 1) * 10
    assert 0.1 < relu[0] / relu[-1] < 10
    assert np.allclose(
        line("activations", 0, "logistic", dashed=True),
        logistic[-1] * 0.25 ** np.arange(len(logistic))[::-1],
    )


def test_he_keeps_the_variance_through_50_layers_and_normal_1_explodes() -> None:
    he = line("initializers", 0, "he_normal")
    assert len(he) == 50
    assert 0.5 < he.min() <= he.max() < 2
    assert line("initializers", 0, "normal:1")[-1] > 1e90
    assert line("initializers", 0, "glorot_normal")[-1] < 1e-12
    theory = line("initializers", 0, "glorot_normal", dashed=True)
    assert theory == pytest.approx(0.5 ** np.arange(50))
    assert line("initializers", 0, "normal:1", dashed=True)[1] == 128  # width 256, half cut off


def test_batch_norm_keeps_activations_level() -> None:
    plain, normed = (line("batchnorm", 1, n) for n in ("without", "after activation"))
    assert normed == pytest.approx(1, abs=0.03)
    assert plain.max() / plain.min() > 1.2 > normed.max() / normed.min()


def test_skip_connections_keep_the_lowest_layers_gradient() -> None:
    plain, skips = (line("skip", 0, name) for name in ("30 layers", "30 layers, skip"))
    assert plain[0] / plain[-1] < 1e-3
    assert skips[0] / skips[-1] > 0.1


def test_clipping_bounds_what_it_says() -> None:
    assert line("clipping", 0, "none").max() > 10
    assert line("clipping", 0, "norm 3").max() < 3 + 1e-3
    weights = 64 * (3 * 64 + 9 * 64) + 64 * 10 + 10 * 64 + 10  # of all layers, with biases
    assert line("clipping", 0, "value 0.05").max() <= 0.05 * weights**0.5 * (1 + 1e-6)


def test_every_optimizer_and_schedule_is_measured() -> None:
    from transferkit.training.optimizers import OPTIMIZERS
    from transferkit.training.schedules import SCHEDULES

    rows = found("optimizers").table[1:]
    assert [row[0] for row in rows] == list(OPTIMIZERS)
    assert all(row[4:] == (OPTIMIZERS[row[0]].speed, OPTIMIZERS[row[0]].quality) for row in rows)
    assert all(
        line("optimizers", 0, name)[-1] < line("optimizers", 0, name)[0] for name in ("sgd", "adam")
    )
    assert [ln.name for ln in found("schedules").panels[0].lines] == list(SCHEDULES)
    assert set(line("schedules", 0, "constant")) == {0.1}
    assert (np.diff(line("schedules", 0, "cosine")) < 0).all()


def test_the_network_is_less_sure_of_the_digit_it_never_saw() -> None:
    known, unknown = (
        np.array(list(panel.bars.values())) for panel in found("dropout").panels if panel.bars
    )  # (K, S)
    assert known.shape == (9, 5)
    assert known.sum(0) == pytest.approx(1)
    assert known.mean(1).max() > unknown.mean(1).max()


def test_all_transfers_start_from_what_was_learned_before() -> None:
    frozen, once, random = (
        line("freezing", 1, name)[0] for name in ("frozen", "unfrozen at once", "random weights")
    )
    assert frozen == once != random


def test_pretrained_depths_know_more_digits_than_random_ones() -> None:
    pretrained, random = (line("depths", 0, name) for name in ("pretrained", "random"))
    assert len(pretrained) == len(random) > 4
    assert pretrained.mean() > random.mean()


def test_every_experiment_is_on_a_page_and_every_page_names_one_that_there_is() -> None:
    named = {read_page(topic).lab for topic in topics()} - {""}
    assert named == set(TOPICS)


def test_a_dashed_line_has_the_colour_of_its_name_and_no_place_in_the_legend() -> None:
    panel = Panel("P", lines=(Line("b", [1, 2]), Line("a", [2, 1]), Line("a", [3, 3], dashed=True)))
    figure = draw(Finding("T", (panel,), ("", "", "")))
    _, plain, dashed = figure.axes[0].lines
    assert plain.get_color() == dashed.get_color()
    assert [text.get_text() for text in figure.legends[0].texts] == ["b", "a"]
    assert {handle.get_linestyle() for handle in figure.legends[0].get_lines()} == {"-"}
