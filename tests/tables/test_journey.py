"""A store of each kind from end to end: fetch, summarize, deliver, and once more after a night in which documents changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from table_kinds import KINDS, Store, delivery, fetching

import pipeline
from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.io.location import open_location
from pipeline.tables.deliver import deliver
from pipeline.tables.fetch import fetch
from pipeline.verify.verify import verify


@pytest.fixture
def stores(tmp_path: Path, postgres: str) -> dict[str, Store]:
    return {kind: Store(kind, tmp_path / kind, postgres) for kind in KINDS}


def documents(word: str, last: int) -> pa.Table:
    texts = [None if n == 3 else f"Document number {n} speaks of {word if n < 10 else 'graphs'}." for n in range(last)]
    return pa.table({"id": [f"d{n}" for n in range(last)], "text": texts, "n": list(range(last)), "other": [0.5] * last})


def summarize(folder: Path, bundle: Path, source: Path) -> Any:
    values: dict[str, Any] = {
        "input": {"path": str(source), "keep_columns": ["n"]},
        "output": {"path": str(folder)},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1, "window_rows": 10},
    }
    return execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest


def test_from_store_to_store_night_after_night(stores: dict[str, Store], tmp_path: Path, tiny_bundle: Path) -> None:
    for night, (word, last) in enumerate([("trees", 30), ("forests", 35)]):
        fetched = []
        for kind, store in stores.items():
            store.write("documents", documents(word, last))
            config = fetching(store, tmp_path / f"in-{kind}", keep_columns=["n"])
            assert (fetch(config).rows, fetch(config).is_new) == (last, False)
            [*_, newest] = sorted((tmp_path / f"in-{kind}/_snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)
            fetched.append(pq.read_table(newest).sort_by("n"))
        assert all(table.equals(documents(word, last).select(["id", "text", "n"])) for table in fetched)
        manifest = summarize(tmp_path / "out", tiny_bundle, tmp_path / "in-iceberg")
        assert manifest.counts.summarized == (29, 9 + 5)[night], "what had not changed was skipped"
        assert verify(open_location(str(tmp_path / "out"), ""), None).findings == []
        expected = pipeline.read_summaries(str(tmp_path / "out")).read_all().sort_by("id").to_pylist()
        assert len(expected) == (29, 34)[night]
        for store in stores.values():
            assert deliver(delivery(store, tmp_path / "out")).had_rows
            assert [pytest.approx(row) for row in store.read("summaries")] == expected, store.kind
            assert not deliver(delivery(store, tmp_path / "out")).had_rows
