import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transferkit.files.csv_rows import escape_cell, from_csv, to_csv, unescape_cell


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@sum", "\t=1", "\r=1", "'=1", "''@"])
def test_formula_like_text_is_escaped(text):
    assert escape_cell(text) == "'" + text


@pytest.mark.parametrize("value", ["-1.5", "+3", "1e-3", "a=b", "'quoted'", "-inf", "", -2, 0.5])
def test_other_cells_stay(value):
    assert escape_cell(value) in (value, str(value))


@given(st.text())
def test_unescape_undoes_escape(text):
    assert unescape_cell(escape_cell(text)) == text


@given(st.lists(st.fixed_dictionaries({"a=": st.text(min_size=1), "=b": st.text(min_size=1)})))
def test_round_trip(rows):
    assert from_csv(to_csv(rows)) == rows


def test_union_of_columns_in_order_of_appearance():
    text = to_csv([{"a": 1, "c": None}, {"b": True, "a": 2}])
    assert list(csv.reader(io.StringIO(text))) == [["a", "c", "b"], ["1", "", ""], ["2", "", "1"]]
    assert to_csv([]) == ""
    assert from_csv("") == []
