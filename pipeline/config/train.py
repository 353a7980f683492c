"""The options of jobs.train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, Section
from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.types import Positive, Precision, Share


class TrainData(Section):
    """Prepared pairs."""

    train: str = Field("prepared/train", description="folder of training pair shards, as prepare writes them")
    dev: str = Field("prepared/dev", description="folder of development pair shards")
    tokenizer: str = Field("prepared/tokenizer.model", description="SentencePiece model")
    max_source_tokens: Positive = Field(128, description="longer sources are cut to this many subwords")
    max_target_tokens: Positive = Field(48, description="longer targets are cut to this many subwords")
    window_rows: Positive = Field(
        8192, description="pairs that are bucketed by length and mixed at a time; a worker holds two such windows"
    )


class TrainingConfig(Section):
    """The optimisation."""

    epochs: Annotated[float, Field(gt=0)] | None = Field(
        10.0, description="passes over the training pairs; null leaves the end to max_minutes or max_steps"
    )
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="end after this time at the latest; the learning rate has come down by then"
    )
    max_steps: Positive | None = Field(None, description="end after this many optimizer steps at the latest")
    token_budget: Positive = Field(8192, description="padded source + target tokens of a batch, in each worker")
    gradient_accumulation: Positive = Field(
        1, description="batches of each worker that a step learns from, one after another: for more than memory has room for"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak rate of Adam")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        400, description="steps of linear warm-up, a tenth of the training at the most"
    )
    final_rate_share: Share = Field(0.05, description="rate at the end, as a share of the peak; decays by a cosine")
    clip_norm: Annotated[float, Field(gt=0)] = Field(2.0, description="largest norm of the gradient")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of each target token's probability that goes to all tokens alike (Szegedy et al. 2016)"
    )
    coverage: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the loss by which attention goes where it has not been (See et al. 2017); needs attention"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="validate and keep a moving average of the weights, of which each step keeps this share; 0: none",
    )
    max_loss_rise: Annotated[float, Field(gt=0)] | None = Field(
        1.0,
        description="roll back to the last checkpoint where the loss of 100 steps is so far above its lowest (nat a token)",
    )
    precision: Precision = Field("auto", description="auto: bfloat16 where the device computes in it, else float32")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="of the weights, dropout and order")
    validate_minutes: Annotated[float, Field(gt=0)] = Field(
        5.0, description="minutes between validations, each of which keeps a checkpoint; the end has one in any case"
    )
    validate_rows: Positive = Field(1000, description="development pairs used at a validation, the first ones")
    best_by: Literal["rougeL", "exact_match", "dev_loss"] = Field(
        "rougeL", description="which figure of the validations chooses the checkpoint that becomes the bundle"
    )
    patience: Positive | None = Field(
        None, description="end after this many validations in a row that were not the best so far, by best_by; null: do not"
    )
    report_seconds: Annotated[float, Field(ge=0)] = Field(
        10.0, description="seconds between lines of progress, on the screen and in train.jsonl"
    )
    export_dtype: Literal["float32", "float16"] = Field(
        "float32", description="of the weights in the bundle's file; float16 halves it"
    )

    @model_validator(mode="after")
    def _has_an_end(self) -> TrainingConfig:
        if self.epochs is None and self.max_minutes is None and self.max_steps is None:
            raise ValueError("a training must end: set epochs, max_minutes or max_steps")
        return self


class ScalingSection(Section):
    """The workers."""

    num_workers: Positive = Field(1, description="DDP workers")
    min_workers: Positive | None = Field(
        None, description="go on with as few workers as this while nodes are gone; null: wait for num_workers"
    )
    use_gpu: bool | None = Field(None, description="one GPU a worker, and NCCL instead of gloo; unset: if the cluster has any")
    threads: Positive | None = Field(None, description="CPU threads a worker computes with; unset: its share of the cores")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="of workers on nodes, as Ray's placement groups have it: on few or on many"
    )
    compress_gradients: bool = Field(
        False, description="exchange gradients in bfloat16: half the bytes, where the network is what workers wait for"
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="how often to go on by itself from the last checkpoint after a worker was lost"
    )

    @model_validator(mode="after")
    def _fewest_is_not_most(self) -> ScalingSection:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError("min_workers is above num_workers; lower one or raise the other")
        return self


class TrainOutput(Section):
    """Where the model goes."""

    path: str = Field(
        "trained", description="folder to write: bundle/, training.html, train.jsonl, tensorboard/, checkpoints/, config.yaml"
    )


class TrainConfig(JobConfig):
    """Train a sequence-to-sequence model on prepared pairs; run it again to go on where it stopped."""

    data: TrainData = TrainData()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    scaling: ScalingSection = ScalingSection()
    output: TrainOutput = TrainOutput()
    watch: MonitoringSection = MonitoringSection()

    @model_validator(mode="after")
    def _coverage_needs_attention(self) -> TrainConfig:
        if self.decoding.coverage_penalty and self.model.attention == "none":
            raise ValueError("decoding.coverage_penalty goes by attention, and model.attention is none; set one of them")
        if self.training.coverage and self.model.attention == "none":
            raise ValueError("training.coverage is of attention, and model.attention is none; set one of them")
        return self
