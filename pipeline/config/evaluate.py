"""Options of jobs.evaluate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, Section
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.types import DecodingPrecision, Positive


class EvaluateInput(Section):
    """Pairs to evaluate on."""

    path: str = Field(
        "prepared/dev",
        description="folder of pair shards from prepare, or one Parquet file; a column references may hold lists of targets",
    )
    max_rows: Positive | None = Field(None, description="evaluate only this many rows from the start; unset: all rows")


class CompareSection(Section):
    """A model to compare with."""

    path: str | None = Field(
        None, description="folder of another model bundle, or sample: score it on the same pairs and say which is better"
    )


class MetricsOptions(Section):
    """Metrics."""

    bootstrap_samples: Annotated[int, Field(ge=0)] = Field(1000, description="resamples for the 95 % intervals; 0: none")
    lead_words: Positive = Field(10, description="length of the lead-words baseline, in words")
    rouge_tokenizer: Literal["standard", "unicode"] = Field(
        "standard", description="standard: only a-z and 0-9, as in published results; unicode: any script"
    )
    bleu_tokenizer: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = Field(
        "13a", description="tokenizer of sacrebleu; use zh, ja-mecab or char for text without spaces"
    )
    seed: Annotated[int, Field(ge=0)] = Field(1, description="random seed of the resampling")


class EvaluateResources(Section):
    """Compute resources."""

    precision: DecodingPrecision = Field(
        "float32",
        description="float32: the reference; bfloat16, int8 (CPUs) and float16 (GPUs): faster, but some summaries differ; "
        "auto: bfloat16 if the device supports it, else float32",
    )


class EvaluateOutput(Section):
    """Where to write the results."""

    path: str = Field("evaluation.json", description="JSON file to write, with all results")
    hypotheses: str | None = Field(
        None,
        description="Parquet file to write, with id, source, reference, hypothesis, score and finish_reason; unset: no file",
    )


class EvaluateConfig(JobConfig):
    """Score a model's summaries and two lead baselines against reference summaries."""

    input: EvaluateInput = EvaluateInput()
    model: ModelPath = ModelPath()
    compare: CompareSection = CompareSection()
    decoding: DecodingOverrides = DecodingOverrides()
    metrics: MetricsOptions = MetricsOptions()
    resources: EvaluateResources = EvaluateResources()
    output: EvaluateOutput = EvaluateOutput()

    @model_validator(mode="after")
    def _check_samples(self) -> EvaluateConfig:
        if self.compare.path is not None and not self.metrics.bootstrap_samples:
            raise ValueError("compare.path needs resamples; set metrics.bootstrap_samples to 1000")
        return self
