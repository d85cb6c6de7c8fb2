from collections.abc import Iterator

import pytest

from transferkit.stopwatch import OTHER, OUTSIDE, Stopwatch, by_part


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_inner_part_stops_the_outer_one_and_no_second_counts_twice() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 1
    with watch.on("training"):
        clock.now += 2
        with watch.on("pictures"):
            clock.now += 4
        clock.now += 8
    watch.enter(0)
    clock.now += 16
    with watch.on("pictures"):
        clock.now += 32
        assert watch.read()[0] == {OTHER: 16, "pictures": 32}
        clock.now += 64
    assert watch.read() == {
        OUTSIDE: {OTHER: 1, "training": 10, "pictures": 4},
        0: {OTHER: 16, "pictures": 96},
    }
    assert watch.total() == clock.now - 100
    assert by_part(watch.read()) == {OTHER: 17, "training": 10, "pictures": 100}


def test_an_error_ends_a_part_and_earlier_seconds_are_added() -> None:
    clock = Clock()
    watch = Stopwatch(clock)

    def work() -> Iterator[int]:
        with watch.on("trunk"):
            clock.now += 3
            yield 1

    def consume() -> None:
        with watch.on("scan"):
            for _ in work():
                clock.now += 4  # whoever consumes belongs to the work that goes on
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        consume()
    clock.now += 1
    watch.add({OUTSIDE: {"scan": 10.0}, 2: {"trunk": 5.0}})
    assert watch.total() == 23
    assert watch.read()[2] == {"trunk": 5.0}
    assert watch.read()[OUTSIDE]["trunk"] == 7


def test_a_part_that_no_table_would_show_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of"), Stopwatch().on("lunch"):
        pass
