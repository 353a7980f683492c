"""The options of jobs.summarize."""

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

    path: str = Field(str(SAMPLE / "documents"), description="Parquet file or folder, any URI that pyarrow opens")
    id_column: str = Field("id", description="column of unique ids, string or integer")
    text_column: str = Field("text", description="column of texts: string, large_string or string_view")
    keep_columns: list[str] = Field([], description="further columns to pass through to the summaries")
    max_chars: Positive = Field(10_000_000, description="longer texts are rejected as too_long")
    on_bad_file: Literal["fail", "skip"] = Field(
        "fail", description="a file that cannot be read, or has other columns, ends the run, or is named and left out"
    )
    max_reject_share: Share = Field(
        1.0, description="with more of the documents rejected or unread, the run ends with status 3 and is not published"
    )


class SummarizeOutput(Section):
    """Where the summaries go."""

    path: str = Field("out", description="folder to write, any URI that pyarrow opens")
    run_id: RunId | None = Field(
        None, description="name of this run; unset: the one that was cut off, if it asked for the same, else the time in UTC"
    )


class Resources(EvaluateResources):
    """What the run computes with."""

    actors: Positive | None = Field(
        None, description="model actors, at most; unset: as many as find room on the GPUs, or without GPUs one per core"
    )
    min_actors: Positive | None = Field(
        None, description="actors to begin with, where the pool may grow as GPUs, or cores, become free; unset: all of them"
    )
    use_gpu: bool | None = Field(None, description="compute on GPUs; unset: if the cluster has any")
    gpus_per_actor: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="part of a GPU that an actor takes; with 0.5, two share one, and its memory"
    )
    accelerator_type: str | None = Field(
        None, description="only nodes with this accelerator, by Ray's name, such as H100; unset: any"
    )
    custom_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="other resources of Ray's that each actor takes, by name, such as '{\"nightly\": 1}'"
    )
    threads: Positive | None = Field(None, description="CPU threads an actor computes with; unset: its share of the cores")
    wait_s: Annotated[float, Field(ge=0)] = Field(
        60.0, description="seconds to wait until the cluster has room for the actors, before the run ends with what is missing"
    )
    tokenizers: Positive | None = Field(None, description="most tokenizer tasks at a time; unset: as many as find room")
    window_rows: Positive = Field(512, description="documents sorted by length and written together")
    window_tokens: Positive | None = Field(
        None, description="also end a window before its sources have more subwords than this together; unset: no bound"
    )
    token_budget: Positive | Literal["auto"] = Field(
        "auto", description="padded source tokens of a decode batch; auto: what the free memory has room for"
    )


class SummarizeConfig(JobConfig):
    """Summarize the documents of a Parquet store that are new, or have changed since the last run."""

    input: DocumentsInput = DocumentsInput()
    output: SummarizeOutput = SummarizeOutput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()
    watch: MonitoringSection = MonitoringSection()
    full: CliImplicitFlag[bool] = Field(False, description="do documents again that an earlier run did and that are unchanged")
    dry_run: CliImplicitFlag[bool] = Field(
        False, alias="dry-run", description="print the plan and what it will take, and stop there"
    )
