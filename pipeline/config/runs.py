"""The options of the jobs that look after what summarize wrote: verify, status, compact."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.types import RunId


class RunsOutput(Section):
    """What summarize wrote."""

    path: str = Field("out", description="folder that summarize wrote, any URI that pyarrow opens")


class VerifyOutput(RunsOutput):
    """The run to verify."""

    run_id: RunId | None = Field(None, description="name of the run; unset: the last one that is published")


class StatusOutput(RunsOutput):
    """The run to look at."""

    run_id: RunId | None = Field(
        None, description="name of the run; unset: the one that is being done, else the last to be seen"
    )


class VerifyConfig(JobConfig):
    """Prove what a run wrote against its manifest and its input; status 0 if all is as it should be, 1 if not."""

    output: VerifyOutput = VerifyOutput()


class StatusConfig(JobConfig):
    """Say where a run stands, whichever machine does it, from its output folder alone."""

    output: StatusOutput = StatusOutput()


class CompactConfig(JobConfig):
    """Write the ledger of all finished runs, by which the next one knows what is done, into few files."""

    output: RunsOutput = RunsOutput()
