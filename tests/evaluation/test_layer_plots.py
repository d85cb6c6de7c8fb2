from typing import Any

import numpy as np

from transferkit.evaluation.layer_plots import inside

GROUPS = ["stem", "block 1", "head"]


def rows() -> list[dict[str, Any]]:
    """Two stages: the head for two epochs, then all but the stem for one."""
    made = []
    for stage, epoch, depths in ((0, 1, (2,)), (0, 2, (2,)), (1, 1, (1, 2))):
        for depth in depths:
            figures = {"gradient_norm": 10.0 ** (depth - 2), "update_ratio": 1e-3, "dead": 0.25}
            key = {"stage": stage, "stage_name": f"s{stage}", "epoch": epoch}
            made.append(key | {"group": GROUPS[depth], "depth": depth} | figures)
    return made


def test_cells_hold_the_readings_and_frozen_ones_stay_empty() -> None:
    figure = inside(rows(), GROUPS)
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.images}
    assert len(panels) == 4
    drawn = panels["Gradient norm"].images[0].get_array()
    assert drawn is not None
    assert np.ma.filled(drawn, -1).tolist() == [[-1] * 3, [-1, -1, 0.1], [1] * 3]
    shares = np.ma.filled(panels["Dead or saturated units"].images[0].get_array(), -1)
    assert shares.tolist() == [[-1] * 3, [-1, -1, 0.25], [0.25] * 3]
    labels = [text.get_text() for text in panels["Gradient norm"].get_yticklabels()]
    assert labels == GROUPS


def test_nothing_monitored_is_drawn_empty() -> None:
    figure = inside([], GROUPS)
    assert len([axes for axes in figure.axes if axes.images]) == 4
    figure.draw_without_rendering()
