"""Whole runs over the documents of a benchmark, on the CPUs of this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.summarize import Resources, SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.runs.manifest import Manifest


@dataclass(frozen=True)
class RunOptions:
    """Options of a run."""

    model: ModelPath
    resources: Resources
    decoding: DecodingOverrides = field(default_factory=DecodingOverrides)
    run_id: str = "benchmark"


def summarize(documents: Path, output: Path, options: RunOptions) -> Manifest:
    """Summarize a folder of documents and return the manifest of the run."""
    values: dict[str, Any] = {
        "input": {"path": str(documents)},
        "output": {"path": str(output), "run_id": options.run_id},
        "model": options.model.model_dump(),
        "decoding": options.decoding.model_dump(),
        "resources": {**options.resources.model_dump(), "use_gpu": False},
    }
    return execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest


def documents_per_s(run: Manifest) -> float:
    """Return the rate of a run, without its start-up."""
    return run.counts.read / run.seconds
