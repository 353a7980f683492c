"""Options of jobs.train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, Section
from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.types import Positive, Precision, Share

FINE_TUNING = {"learning_rate": 5e-4, "epochs": 8.0, "warmup_steps": 40, "validate_minutes": 1.0, "coverage": 0.5}
"""Defaults of ``training`` with ``model.init_from``: few pairs, and weights that should not move far."""


class TrainData(Section):
    """Prepared pairs."""

    train: str = Field("prepared/train", description="folder of training pair shards from prepare")
    dev: str = Field("prepared/dev", description="folder of development pair shards")
    tokenizer: str | None = Field(
        "prepared/tokenizer.model", description="SentencePiece model file; default with model.init_from: the bundle's"
    )
    max_source_tokens: Positive = Field(
        128, description="truncate sources to this many subwords; default with model.init_from: as many as it reads"
    )
    max_target_tokens: Positive = Field(
        48, description="truncate targets to this many subwords; default with model.init_from: as many as it writes, if more"
    )
    window_rows: Positive = Field(
        8192, description="pairs that are shuffled and bucketed by length together; a worker holds the token ids of two windows"
    )


class TrainModel(ModelConfig):
    """Shape of the network."""

    init_from: str | None = Field(
        None,
        description="folder of a model bundle to start from, or sample, the shipped one (./sample is a folder): weights, "
        "tokenizer, shape and decoding options; unset: random weights",
    )

    @property
    def network(self) -> ModelConfig:
        """The shape alone, as a bundle stores it."""
        return ModelConfig.model_validate(self.model_dump(by_alias=True, exclude={"init_from"}))


class TrainingConfig(Section):
    """Optimization."""

    epochs: Annotated[float, Field(gt=0)] | None = Field(
        10.0, description="maximum number of passes over the training pairs; null: no limit; default with model.init_from: 8"
    )
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="maximum training time, over which the learning rate decays; unset: no limit"
    )
    max_steps: Positive | None = Field(None, description="maximum number of optimizer steps; unset: no limit")
    token_budget: Positive = Field(8192, description="padded source and target tokens of a batch, per worker")
    gradient_accumulation: Positive = Field(
        1, description="batches per worker and optimizer step, for a larger batch than fits in memory"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="peak learning rate of Adam; default with model.init_from: 0.0005"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        400, description="steps of linear warm-up, limited to a tenth of the training; default with model.init_from: 40"
    )
    final_rate_share: Share = Field(0.05, description="final learning rate, as a share of the peak; the decay is a cosine")
    clip_norm: Annotated[float, Field(gt=0)] = Field(2.0, description="maximum norm of the gradient")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the target probability that is spread over all tokens (Szegedy et al. 2016)"
    )
    coverage: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="weight of the coverage loss, against repeated attention (See et al. 2017); needs attention; default with "
        "model.init_from: 0.5",
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="validate and export a moving average of the weights with this decay per step; 0: no average",
    )
    max_loss_rise: Annotated[float, Field(gt=0)] | None = Field(
        1.0,
        description="roll back to the last checkpoint if the loss of 100 steps is this far above its minimum, in nats per "
        "token; null: never",
    )
    precision: Precision = Field("auto", description="auto: bfloat16 if the device supports it, else float32")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="random seed of the initial weights, dropout and data order")
    validate_minutes: Annotated[float, Field(gt=0)] = Field(
        5.0,
        description="minutes between validations, each of which writes a checkpoint; the last step is always validated; "
        "default with model.init_from: 1",
    )
    validate_rows: Positive = Field(1000, description="number of development pairs to validate on, from the start")
    best_by: Literal["rougeL", "exact_match", "dev_loss"] = Field(
        "rougeL", description="metric that selects the checkpoint for the model bundle"
    )
    patience: Positive | None = Field(
        None, description="stop after this many validations in a row without an improvement of best_by; unset: never"
    )
    report_seconds: Annotated[float, Field(ge=0)] = Field(
        10.0, description="seconds between progress lines, on the screen and in train.jsonl"
    )
    export_dtype: Literal["float32", "float16"] = Field(
        "float32", description="type of the weights in the model bundle; float16 halves its size"
    )

    @model_validator(mode="after")
    def _check_limits(self) -> TrainingConfig:
        if self.epochs is None and self.max_minutes is None and self.max_steps is None:
            raise ValueError("nothing limits the training; set epochs, max_minutes or max_steps")
        return self


class ScalingSection(Section):
    """Workers."""

    num_workers: Positive = Field(1, description="number of DDP workers")
    min_workers: Positive | None = Field(
        None, description="continue with this many workers if nodes are lost; unset: wait for num_workers"
    )
    use_gpu: bool | None = Field(
        None, description="use one GPU per worker, and NCCL instead of gloo; unset: if the cluster has any"
    )
    threads: Positive | None = Field(None, description="CPU threads per worker; unset: its share of the cores")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="placement of the workers: on few nodes (PACK) or many (SPREAD); see Ray's placement groups"
    )
    compress_gradients: bool = Field(
        False, description="exchange gradients in bfloat16, which halves the traffic on a slow network"
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="maximum number of automatic restarts from the last checkpoint after a worker is lost"
    )

    @model_validator(mode="after")
    def _check_min_workers(self) -> ScalingSection:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError("min_workers is above num_workers; lower one or raise the other")
        return self


class TrainOutput(Section):
    """Where to write the model."""

    path: str = Field(
        "trained",
        description="output folder: bundle/, training.html, train.jsonl, tensorboard/, checkpoints/, config.yaml",
    )


class TrainConfig(JobConfig):
    """Train a sequence-to-sequence model on prepared pairs. The same command resumes an interrupted training."""

    data: TrainData = TrainData()
    model: TrainModel = TrainModel()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    scaling: ScalingSection = ScalingSection()
    output: TrainOutput = TrainOutput()
    watch: MonitoringSection = MonitoringSection()

    @model_validator(mode="after")
    def _check_coverage(self) -> TrainConfig:
        if self.decoding.coverage_penalty and self.model.attention == "none":
            raise ValueError("decoding.coverage_penalty needs attention, but model.attention is none; change one of them")
        if self.training.coverage and self.model.attention == "none":
            raise ValueError("training.coverage needs attention, but model.attention is none; change one of them")
        return self
