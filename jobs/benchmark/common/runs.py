"""Whole runs over the documents of a benchmark, on the CPUs of this machine."""

from __future__ import annotations

from pathlib import Path

from jobs.benchmark.common.documents import RepeatedTexts
from pipeline.config.base import JobConfig
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.summarize import DocumentsInput, Resources, SummarizeConfig, SummarizeOutput
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.runs.manifest import Manifest

FILES = 8
"""Files of a run's documents."""


class RunsBenchmark(JobConfig):
    """A benchmark of whole runs."""

    input: RepeatedTexts = RepeatedTexts()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()

    @property
    def run_options(self) -> SummarizeConfig:
        return SummarizeConfig(model=self.model, decoding=self.decoding, resources=self.resources)


def summarize(documents: Path, output: Path, options: SummarizeConfig, run_id: str = "benchmark") -> Manifest:
    """Summarize a folder of documents, whatever input and output the options have, and return the manifest of the run."""
    sections = {
        "input": DocumentsInput(path=str(documents)),
        "output": SummarizeOutput(path=str(output), run_id=run_id),
        "resources": options.resources.model_copy(update={"use_gpu": False}),
    }
    return execute(plan_run(options.model_copy(update=sections))).manifest
