import math
from xml.etree import ElementTree

import pytest

from transferkit.reporting.charts import Axis, Band, Line, Mark, axis_over, line_chart, timeline
from transferkit.reporting.figures import outside_the_stages, time_rows

X, Y = Axis("epoch", 0, 10), Axis("loss", 0, 2)
SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(
        str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    )


def paths(svg: str) -> list[str]:
    return [path.attrib["d"] for path in parsed(svg).iter(f"{SVG}path")]


@pytest.mark.parametrize(
    ("axis", "value", "place"),
    [
        (Axis("", 2, 4), 3.0, 0.5),
        (Axis("", 1e-4, 1e-2, log=True), 1e-3, 0.5),
        (Axis("", 2, 4), 5.0, 1.5),
    ],
)
def test_places_on_an_axis(axis: Axis, value: float, place: float) -> None:
    assert axis.place(value) == pytest.approx(place)


def test_ticks_are_round_and_within() -> None:
    assert Axis("", 0.13, 0.97).ticks() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Axis("", 2e-5, 2e-3, log=True).ticks() == pytest.approx([1e-4, 1e-3])
    assert all(v == round(v) for v in Axis("", 0.5, 3.5, whole=True).ticks())


def test_an_axis_holds_its_values_within_its_limits() -> None:
    axis = axis_over("accuracy", [0.9, math.nan, 1.0], limits=(0, 1))
    assert axis.low < 0.9
    assert axis.high == 1
    wide = axis_over("loss", [0.5, 0.5], least=0.2)
    assert (wide.low, wide.high) == pytest.approx((0.4, 0.6))


def test_a_line_goes_through_its_points_and_stops_at_gaps() -> None:
    line = Line("loss", [0, 5, 6, 10], [2.0, 1.0, math.nan, 0.0], tone=0)
    (path,) = paths(line_chart("told", [line], X, Y))
    assert path == "M0.0 0.0L500.0 500.0M1000.0 1000.0"
    dots = list(parsed(line_chart("told", [line], X, Y)).iter(f"{SVG}circle"))
    assert dots[0].findtext(f"{SVG}title") == "loss, epoch 0: 2"
    assert len(dots) == 3


def test_names_are_escaped_and_the_picture_is_told() -> None:
    evil = "<script>alert(1)</script>"
    line = Line(evil, [0, 1], [1, 1], tone=0)
    svg = line_chart(evil, [line], X, Y, [Band(evil, 0, 10)], Mark(1, 1, evil))
    assert "<script" not in svg
    assert parsed(svg).attrib["aria-label"] == evil
    assert evil in [text.text for text in parsed(svg).iter(f"{SVG}text")]
    assert "<script" not in timeline([(evil, 1.0, 0)])


def test_bands_without_room_are_numbered() -> None:
    bands = [Band("a long name", 0, 9), Band("another", 9, 10)]
    texts = [t.text for t in parsed(line_chart("", [], X, Y, bands)).iter(f"{SVG}text")]
    assert {"1", "2"} <= set(texts)
    assert "another" not in texts


def test_a_timeline_is_as_wide_as_it_took() -> None:
    rects = list(parsed(timeline([("a", 1.0, 0), ("b", 3.0, 1)])).iter(f"{SVG}rect"))
    assert [(r.attrib["x"], r.attrib["width"]) for r in rects] == [
        ("0.000%", "25.000%"),
        ("25.000%", "75.000%"),
    ]


def test_the_time_outside_of_the_stages_is_what_they_did_not_take() -> None:
    summary = {
        "parts": {"scan": 2.0, "training": 7.0, "checkpoint": 0.01},
        "stages": [{"parts": {"training": 3.0}}, {"parts": {"training": 4.0, "scan": 0.5}}],
    }
    assert outside_the_stages(summary) == {"scan": 1.5, "training": 0.0, "checkpoint": 0.01}
    assert time_rows(summary) == [
        ("scan", [0.0, 0.5, 1.5, 2.0]),
        ("training", [3.0, 4.0, 0.0, 7.0]),
    ]
    earlier = {"parts": {"scan": 2.0}, "stages": [{"seconds": 3.0}]}
    assert outside_the_stages(earlier) == {"scan": 2.0}
    assert time_rows(earlier) == []
