"""Fetch, summarize and deliver with each type of table, then once more after documents have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from native_tables import TABLE_TYPES, NativeTables

import pipeline
from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.io.location import open_location
from pipeline.runs.manifest import Manifest
from pipeline.tables.deliver import deliver
from pipeline.tables.fetch import fetch
from pipeline.verify.verify import verify


def make_documents(topic: str, rows: int) -> pa.Table:
    """Return documents of which only the first ten depend on the topic. The fourth has no text."""
    texts = [None if n == 3 else f"Document number {n} speaks of {topic if n < 10 else 'graphs'}." for n in range(rows)]
    return pa.table({"id": [f"d{n}" for n in range(rows)], "text": texts, "n": list(range(rows)), "other": [0.5] * rows})


def summarize(source: Path, output: Path, bundle: Path) -> Manifest:
    values: dict[str, Any] = {
        "input": {"path": str(source), "keep_columns": ["n"]},
        "output": {"path": str(output)},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1, "window_rows": 10},
    }
    return execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest


def test_from_table_to_table_twice(tmp_path: Path, postgres: str, tiny_bundle: Path) -> None:
    all_tables = [NativeTables(table_type, tmp_path / table_type, postgres) for table_type in TABLE_TYPES]
    for topic, rows, new, total in [("trees", 30, 29, 29), ("forests", 35, 9 + 5, 34)]:
        documents = make_documents(topic, rows)
        for tables in all_tables:
            folder = tmp_path / f"in-{tables.type}"
            tables.write("documents", documents)
            config = tables.fetch_config(folder, keep_columns=["n"])
            assert (fetch(config).rows, fetch(config).is_new) == (rows, False)
            *_, newest = sorted((folder / "_snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)
            assert pq.read_table(newest).sort_by("n").equals(documents.select(["id", "text", "n"]))
        manifest = summarize(tmp_path / "in-iceberg", tmp_path / "out", tiny_bundle)
        assert manifest.counts.summarized == new, "unchanged documents are skipped"
        assert verify(open_location(str(tmp_path / "out"), ""), None).findings == []
        expected = pipeline.read_summaries(str(tmp_path / "out")).read_all().sort_by("id").to_pylist()
        assert len(expected) == total
        for tables in all_tables:
            assert deliver(tables.deliver_config(tmp_path / "out")).had_rows
            assert [pytest.approx(row) for row in tables.read("summaries")] == expected, tables.type
            assert not deliver(tables.deliver_config(tmp_path / "out")).had_rows
