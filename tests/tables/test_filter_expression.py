"""Conditions select the rows that SQL would."""

from __future__ import annotations

import pyarrow as pa
import pytest
import ray.data

from pipeline.tables.filter_expression import parse_filter

ROWS = pa.table({"n": [1, 5, None, 9], "lang": ["en", "de", "en", "fr"]})


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("n > 1", [5, 9]),
        ("n >= 5 and lang != 'fr'", [5]),
        ("n == 1 or n == 9", [1, 9]),
        ("lang in ['de', 'fr']", [5, 9]),
        ("lang not in ['de', 'fr']", [1, None]),
        ("not n < 9", [9]),
        ("is_null(n)", [None]),
        ("is_not_null(n) and n > -2", [1, 5, 9]),
        ("-n < -4", [5, 9]),
        ("is_in(n, [1, 9])", [1, 9]),
    ],
)
@pytest.mark.filterwarnings("error:String expressions:DeprecationWarning")
def test_a_condition_selects_rows(condition: str, expected: list[int | None]) -> None:
    rows = ray.data.from_arrow(ROWS).filter(expr=parse_filter(condition)).take_all()
    assert [row["n"] for row in rows] == expected


@pytest.mark.parametrize("condition", ["n >", "n = 5", "__import__('os')", "lang.upper() == 'EN'", "1 < n < 5"])
def test_other_expressions_are_refused(condition: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_filter(condition)
