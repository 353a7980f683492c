"""Options of jobs.summarize."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import CliImplicitFlag

from pipeline.config.base import JobConfig, Section
from pipeline.config.evaluate import EvaluateResources
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.types import SAMPLE, Positive, RunId, Share


class DocumentsInput(Section):
    """Documents to summarize."""

    path: str = Field(str(SAMPLE / "documents"), description="Parquet file or folder: a path or any URI that pyarrow opens")
    id_column: str = Field("id", description="column of unique ids, string or integer")
    text_column: str = Field("text", description="column of texts: string, large_string or string_view")
    keep_columns: list[str] = Field([], description="other columns to copy to the summaries")
    max_chars: Positive = Field(10_000_000, description="reject longer texts as too_long")
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail",
        description="what to do if a file cannot be read or lacks a column: stop the run, or skip the file and report it",
    )
    max_reject_share: Share = Field(
        1.0, description="if a larger share of documents is rejected or unread, do not publish the run; exit with status 3"
    )


class SummarizeOutput(Section):
    """Where to write the summaries."""

    path: str = Field("out", description="output folder: a path or any URI that pyarrow opens")
    run_id: RunId | None = Field(
        None, description="name of this run; unset: resume an interrupted run with the same options, or else the time in UTC"
    )


class Resources(EvaluateResources):
    """Compute resources."""

    actors: Positive | None = Field(
        None, description="maximum number of model actors; unset: as many as fit on the GPUs or, without GPUs, one per core"
    )
    min_actors: Positive | None = Field(
        None, description="start with this many actors and add more as GPUs or cores become free; unset: start with all"
    )
    use_gpu: bool | None = Field(None, description="run the model on GPUs; unset: if the cluster has any")
    gpus_per_actor: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of a GPU per actor; 0.5: two actors share a GPU and its memory"
    )
    accelerator_type: str | None = Field(
        None, description="use only nodes with this accelerator, by Ray's name, such as H100; unset: all nodes"
    )
    custom_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="custom Ray resources that each actor needs, such as '{\"nightly\": 1}'"
    )
    threads: Positive | None = Field(None, description="CPU threads per actor; unset: its share of the cores")
    wait_s: Annotated[float, Field(ge=0)] = Field(
        60.0, description="seconds to wait for room for the actors in the cluster before the run fails"
    )
    tokenizers: Positive | None = Field(None, description="maximum number of concurrent tokenizer tasks; unset: as many as fit")
    window_rows: Positive = Field(512, description="documents that are sorted by length and written together")
    window_tokens: Positive | None = Field(None, description="maximum number of source subwords in a window; unset: no limit")
    token_budget: Positive | Literal["auto"] = Field(
        "auto", description="padded source tokens per decoding batch; auto: as many as fit in free memory"
    )


class SummarizeConfig(JobConfig):
    """Summarize the documents of Parquet files that are new or have changed since the last run."""

    input: DocumentsInput = DocumentsInput()
    output: SummarizeOutput = SummarizeOutput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()
    watch: MonitoringSection = MonitoringSection()
    full: CliImplicitFlag[bool] = Field(False, description="also summarize documents again that have not changed")
    dry_run: CliImplicitFlag[bool] = Field(
        False, alias="dry-run", description="print the plan and an estimate of the time, and write nothing"
    )
