"""An output folder of several nights, for the tests of what reads and checks one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute


def _texts(start: int, end: int, word: str) -> dict[str, str | None]:
    return {f"d{n}": f"Document number {n} speaks of {word}." for n in range(start, end)}


@pytest.fixture(scope="session")
def nights(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A folder with in/ and out/ of four nights.

    2026: d0 to d59, of which d59 has no text; two more rows are d0 again, and without an id; n is int32. 2027: d50 to d54
    have changed and d60 to d64 are new; there is a column tag, and n is int64. 2028: nothing is new. 2029: d0 to d19 have
    changed, d65 to d69 are new, and no column is kept.
    """
    folder = tmp_path_factory.mktemp("nights")
    (folder / "in").mkdir()

    def night(run_id: str, texts: dict[str, str | None], n: pa.DataType, columns: list[str]) -> None:
        ids, bodies = [*texts, "d0", None], [*texts.values(), "repeated", "no id"]
        table = pa.table({"id": ids, "text": bodies, "n": pa.array(range(len(ids)), n), "tag": [f"t{i}" for i in ids]})
        for number, start in enumerate(range(0, len(ids), 40)):
            pq.write_table(table.slice(start, 40), folder / f"in/{number}.parquet")
        values: dict[str, Any] = {
            "input": {"path": str(folder / "in"), "keep_columns": columns},
            "output": {"path": str(folder / "out"), "run_id": run_id},
            "model": {"path": str(tiny_bundle)},
            "resources": {"actors": 1, "window_rows": 10},
        }
        execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None)

    texts = _texts(0, 59, "graphs") | {"d59": None}
    night("2026", texts, pa.int32(), ["n"])
    texts |= _texts(50, 55, "trees") | _texts(60, 65, "graphs")
    night("2027", texts, pa.int64(), ["n", "tag"])
    night("2028", texts, pa.int64(), ["n", "tag"])
    night("2029", texts | _texts(0, 20, "trees") | _texts(65, 70, "graphs"), pa.int64(), [])
    return folder


@pytest.fixture
def output(nights: Path, tmp_path: Path) -> Path:
    """A copy of the output folder, to be spoilt."""
    return Path(shutil.copytree(nights / "out", tmp_path / "out"))
