"""The options of jobs.evaluate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.model import DecodingOverrides, ModelPath
from pipeline.config.types import DecodingPrecision, Positive


class EvaluateInput(Section):
    """Pairs to evaluate on."""

    path: str = Field("prepared/dev", description="folder of pair shards, as prepare writes them, or a Parquet file")
    max_rows: Positive | None = Field(None, description="evaluate on the first rows only")


class MetricsOptions(Section):
    """What is measured."""

    bootstrap_samples: Annotated[int, Field(ge=0)] = Field(1000, description="resamples for the 95 % intervals; 0: none")
    lead_words: Positive = Field(10, description="words of the lead-words baseline")
    rouge_tokenizer: Literal["standard", "unicode"] = Field(
        "standard", description="standard knows a to z and 0 to 9 alone, as published figures do; unicode: any script"
    )
    bleu_tokenizer: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = Field(
        "13a", description="sacrebleu's; zh, ja-mecab or char where text has no spaces"
    )
    seed: Annotated[int, Field(ge=0)] = Field(1, description="of the resampling")


class EvaluateResources(Section):
    """What the evaluation computes with."""

    precision: DecodingPrecision = Field(
        "float32",
        description="float32 is the reference; bfloat16, int8 (CPUs) and float16 (GPUs) are faster, and some summaries differ; "
        "auto is bfloat16 where the device computes in it",
    )


class EvaluateOutput(Section):
    """Where the figures go."""

    path: str = Field("evaluation.json", description="JSON file to write, with every figure")
    hypotheses: str | None = Field(
        None, description="Parquet file to write, with id, source, reference, hypothesis, score, finish_reason"
    )


class EvaluateConfig(JobConfig):
    """Score a model's hypotheses against references and the lead baselines."""

    input: EvaluateInput = EvaluateInput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    metrics: MetricsOptions = MetricsOptions()
    resources: EvaluateResources = EvaluateResources()
    output: EvaluateOutput = EvaluateOutput()
