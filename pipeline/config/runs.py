"""Options of the jobs that work on the output of summarize: verify, status, compact."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.types import RunId


class RunsOutput(Section):
    """Output folder of summarize."""

    path: str = Field("out", description="output folder of summarize: a path or any URI that pyarrow opens")


class VerifyOutput(RunsOutput):
    """The run to verify."""

    run_id: RunId | None = Field(None, description="name of the run; unset: the last finished run")


class StatusOutput(RunsOutput):
    """The run to look up."""

    run_id: RunId | None = Field(None, description="name of the run; unset: the active run, or else the latest one")


class VerifyConfig(JobConfig):
    """Check the output of a run against its manifest and its input. Exit status: 0 if they agree, 1 if not."""

    output: VerifyOutput = VerifyOutput()


class StatusConfig(JobConfig):
    """Show the progress of a run on any machine, from its output folder alone."""

    output: StatusOutput = StatusOutput()


class CompactConfig(JobConfig):
    """Merge the ledger of all finished runs into a few files, so that the next run loads it faster."""

    output: RunsOutput = RunsOutput()
