import numpy as np
import pytest

from transferkit.training.cache_rows import CacheRows


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 9])
@pytest.mark.parametrize(("train", "views", "val"), [(4, 3, 3), (5, 1, 2), (1, 4, 1), (7, 2, 0)])
def test_every_view_has_the_row_that_it_is_listed_at(
    train: int, views: int, val: int, parts: int
) -> None:
    rows = CacheRows(train, views, val, parts)
    listed = [(p, v) for part in range(parts) for p, vs in rows.views(part) for v in vs]
    assert len(listed) == len(set(listed)) == rows.num_rows == train * views + val
    of = {view: row for row, view in enumerate(listed)}
    every = np.array([(p, v) for p in range(train) for v in range(views)])
    found = rows.rows_of(every[:, 0], every[:, 1])
    assert found.tolist() == [of[p, v] for p, v in every.tolist()]
    assert rows.val_rows().tolist() == [of[train + p, 0] for p in range(val)]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 9])
def test_a_part_holds_whole_pictures_and_begins_with_clean_views(parts: int) -> None:
    rows = CacheRows(num_train=5, num_views=3, num_val=3, parts=parts)
    starts = rows.starts()
    assert (starts[0], starts[-1], len(starts)) == (0, 18, parts + 1)
    pictures: set[int] = set()
    for part in range(parts):
        listed = rows.views(part)
        clean = [p for p, views in listed if views == (0,)]
        assert [views for _, views in listed[: len(clean)]] == [(0,)] * rows.num_clean(part)
        assert sum(len(views) for _, views in listed) == starts[part + 1] - starts[part]
        assert not pictures & set(clean)
        pictures |= set(clean)
        assert {p for p, views in listed[len(clean) :]} == {p for p in clean if p < 5}
    assert pictures == set(range(8))
