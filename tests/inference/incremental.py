"""A run over tmp_path/in to tmp_path/out, whole or cut off, for the tests of several nights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import Plan, plan_run
from pipeline.inference.run import RunResult, execute
from pipeline.runs.progress import RunProgress


def night(
    tmp_path: Path,
    bundle: Path,
    run_id: str | None,
    on_progress: Callable[[RunProgress], None] = lambda _: None,
    **sections: Any,
) -> RunResult:
    """A run over tmp_path/in."""
    return execute(planned(tmp_path, bundle, run_id, **sections), on_progress)


def planned(tmp_path: Path, bundle: Path, run_id: str | None, **sections: Any) -> Plan:
    """The plan of one."""
    values: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in"), **sections.pop("input", {})},
        "output": {"path": str(tmp_path / "out"), "run_id": run_id},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1, "window_rows": 10},
        **sections,
    }
    return plan_run(SummarizeConfig.model_validate(values))


def write(tmp_path: Path, name: str, texts: dict[Any, str | None]) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"id": list(texts), "text": pa.array(texts.values(), pa.string())}), tmp_path / f"in/{name}.parquet"
    )


def written(tmp_path: Path, run_id: str, kind: str = "summaries") -> list[Any]:
    folder = tmp_path / f"out/{kind}/run={run_id}"
    return sorted(pads.dataset(folder).to_table()["id"].to_pylist()) if folder.exists() else []


def texts(start: int, end: int, word: str = "graphs") -> dict[Any, str | None]:
    return {n: f"Document number {n} speaks of {word}." for n in range(start, end)}


class Killed(Exception):
    pass


def kill_after(windows: int) -> Callable[[RunProgress], None]:
    left = [windows]

    def kill(_: RunProgress) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    return kill
