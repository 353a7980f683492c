"""One typed, validated configuration per job.

What the options are, what they may be and what they default to. Nothing here knows what they do, nor where their values
come from (options.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_settings import CliImplicitFlag

from pipeline.errors import UserError
from pipeline.sections import JobConfig, Section, explained

SAMPLE = Path(__file__).parent / "sample"

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of ``<pad>``, ``<unk>``, ``<s>`` and ``</s>`` in every tokenizer and model: a convention, not an option."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DecodePrecision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

# A bundle's own words are checked before memory is taken for them: beyond these lies no network that anyone trains here.
Width = Annotated[int, Field(gt=0, le=1 << 16)]
Depth = Annotated[int, Field(gt=0, le=64)]
Subwords = Annotated[int, Field(gt=0, le=1_000_000)]
Hypotheses = Annotated[int, Field(gt=0, le=1000)]

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _names_a_folder(run_id: str) -> str:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError("names a folder: letters, digits, '.', '_' and '-' alone, please")
    return run_id


RunId = Annotated[str, AfterValidator(_names_a_folder)]


class ModelConfig(Section):
    """The network's shape."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="recurrent cell of encoder and decoder")
    embedding_size: Width = Field(256, description="size of a token's embedding")
    hidden_size: Width = Field(256, description="units per layer of the decoder, and per direction of the encoder")
    layers: Depth = Field(1, description="stacked recurrent layers, in the encoder and in the decoder")
    bidirectional: bool = Field(True, description="encoder reads in both directions; a learned bridge joins the states")
    attention: Literal["none", "dot", "general", "additive"] = Field(
        "general",
        description="none is the plain network; dot, general: Luong et al. 2015; additive: Bahdanau et al. 2015",
    )
    copy_source: bool = Field(
        True, alias="copy", description="let the decoder copy source subwords (See et al. 2017); needs attention"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="dropout on embeddings, between layers and before the output"
    )
    variational_dropout: bool = Field(
        False, description="dropout drops the same units at each step of a text (Gal & Ghahramani 2016)"
    )
    recurrent_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="dropout on the weights from step to step, a draw a batch (Merity et al. 2018)"
    )
    tied_embeddings: bool = Field(True, description="source, target and output layers share one embedding table")

    @model_validator(mode="after")
    def _copy_needs_attention(self) -> ModelConfig:
        if self.copy_source and self.attention == "none":
            raise ValueError("copy: true needs an attention to copy by; set attention to dot, general or additive")
        return self


class DecodingConfig(Section):
    """How a summary is searched for. Saved in the bundle as its defaults."""

    max_source_tokens: Subwords = Field(128, description="longer sources are cut to this many subwords and marked so")
    max_target_tokens: Subwords = Field(48, description="a summary that has not ended by then is cut")
    min_target_tokens: Annotated[int, Field(ge=0)] = Field(1, description="no </s> before this many subwords")
    max_target_ratio: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="also cut a summary at this many subwords for each one of its source, and max_target_extra more"
    )
    max_target_extra: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        10, description="see max_target_ratio, which must be set"
    )
    no_repeat_ngram: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        3, description="never write the same n subwords twice in a summary; 0 turns this off"
    )
    beam_size: Hypotheses = Field(1, description="hypotheses followed at a time; 1 is greedy search")
    length_penalty: Annotated[float, Field(ge=0, le=100)] = Field(
        0.6, description="beam search: how much longer hypotheses are favoured (alpha in Wu et al. 2016, eq. 14)"
    )
    coverage_penalty: Annotated[float, Field(ge=0)] = Field(
        0.0, description="beam search: weight of having attended to all of the source (beta there); needs attention"
    )

    @model_validator(mode="after")
    def _can_end(self) -> DecodingConfig:
        if self.min_target_tokens > self.max_target_tokens:
            raise ValueError(f"min_target_tokens {self.min_target_tokens} is over max_target_tokens {self.max_target_tokens}")
        return self


class TokenizerConfig(Section):
    """SentencePiece training."""

    vocabulary_size: Positive = Field(8000, description="subwords, including 256 bytes and 4 special tokens")
    algorithm: Literal["unigram", "bpe"] = Field("unigram", description="SentencePiece model type")
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.9995, description="share of characters that get a subword; the rest is written in bytes, so none is lost"
    )
    normalization: Literal["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"] = Field(
        "identity",
        description="Unicode normalisation before encoding; identity changes nothing but runs of white space",
    )
    split_by_script: bool = Field(
        True, description="no subword joins letters with signs, or two scripts; false lets I_WALK be one subword"
    )
    train_rows: Positive = Field(500_000, description="pairs sampled for the training of the tokenizer, at most")


class PairsInput(Section):
    """Where the pairs come from."""

    train: str = Field(
        ...,
        description="training pairs: path, glob, URL, ARCHIVE://FILE::PATH, or Hugging Face data set NAME[:CONFIG][@SPLIT]",
    )
    dev: str | None = Field(None, description="the same for the development pairs; without it, a share of train")
    test: str | None = Field(None, description="the same for test pairs; without it, a share of train")
    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "lines", "datasets"] = Field(
        "auto", description="auto goes by the file name's ending; .xz, .gz, .bz2 and .zst are opened on the way"
    )
    columns: list[str] | None = Field(None, description="column names of TSV or CSV files without a header line")
    pattern: str | None = Field(
        None, description="for format lines: a regular expression with the groups (?P<source>…) and (?P<target>…)"
    )
    source_column: str = Field(
        "source", description="column of the source text; a.b is field b in column a; a list of strings is joined by spaces"
    )
    target_column: str = Field("target", description="column of the target text; a.b is field b in column a")
    target_list: Literal["each", "first", "join"] = Field(
        "each", description="a target that is a list of strings: a pair for each of them, the first only, or joined by spaces"
    )
    id_column: str | None = Field(None, description="column of a pair's id; without it, rows are numbered from 0")
    dev_share: Share = Field(0.02, description="share of train kept for development, split by source, if dev is unset")
    test_share: Share = Field(0.0, description="share of train kept for test, split by source, if test is unset")
    split_seed: int = Field(1, description="another seed draws other shares of train for dev and test")
    max_rows: Positive | None = Field(None, description="read no more rows than this from each input")

    @model_validator(mode="after")
    def _shares_leave_some(self) -> PairsInput:
        if (0 if self.dev else self.dev_share) + (0 if self.test else self.test_share) >= 1:
            raise ValueError("dev_share and test_share leave nothing of train; their sum must be below 1")
        return self


class PairsFilter(Section):
    """Which pairs are dropped."""

    min_source_chars: Annotated[int, Field(ge=0)] = Field(1, description="shorter sources are dropped")
    min_target_chars: Annotated[int, Field(ge=0)] = Field(1, description="shorter targets are dropped")
    max_chars: Positive = Field(1_000_000, description="longer sources or targets are dropped")
    drop_held_out: bool = Field(
        True, description="drop training pairs whose source is also in the dev or test set that was given; false: count them"
    )


class PrepareOutput(Section):
    """Where the pairs go."""

    path: str = Field("prepared", description="folder to write; it gets train/, dev/, test/, tokenizer.model, prepare.json")
    rows_per_shard: Positive = Field(20_000, description="rows in one Parquet shard, at most")
    overwrite: bool = Field(False, description="replace what an earlier prepare wrote there, once the new is whole")


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

    precision: DecodePrecision = Field(
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


class ModelPath(Section):
    """The model bundle."""

    path: str = Field(str(SAMPLE / "model"), description="model bundle, a folder")


class DocumentsInput(Section):
    """Documents to summarize."""

    path: str = Field(str(SAMPLE / "documents"), description="Parquet file or folder, any URI that pyarrow opens")
    id_column: str = Field("id", description="column of unique ids, string or integer")
    text_column: str = Field("text", description="column of texts, string or large_string")
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


class OutputOfRuns(Section):
    """What summarize wrote."""

    path: str = Field("out", description="folder that summarize wrote, any URI that pyarrow opens")


class VerifyOutput(OutputOfRuns):
    """The run to verify."""

    run_id: RunId | None = Field(None, description="name of the run; unset: the last one that is published")


class StatusOutput(OutputOfRuns):
    """The run to look at."""

    run_id: RunId | None = Field(
        None, description="name of the run; unset: the one that is being done, else the last to be seen"
    )


class StoreSection(Section):
    """A document store."""

    kind: Literal["iceberg", "delta", "jsonl", "postgres"] = Field(..., description="what the store is")
    table: str = Field(
        ..., description="NAMESPACE.TABLE in Iceberg, [SCHEMA.]TABLE in PostgreSQL; of Delta and JSON lines the folder, any URI"
    )
    catalog: str = Field("default", description="Iceberg: the catalog's name in .pyiceberg.yaml or PYICEBERG_CATALOG__NAME__…")
    catalog_properties: dict[str, str] = Field(
        {}, description='Iceberg: further properties of the catalog, such as \'{"uri": "sqlite:///c.db"}\'; no passwords'
    )
    connection: str = Field(
        "", description="PostgreSQL: what libpq connects to, as URI or 'host=… dbname=…', beside PGHOST and so on; no password"
    )
    password_env: str | None = Field(
        None, description="PostgreSQL: environment variable with the password; unset: PGPASSWORD, .pgpass or the service's"
    )


class FetchInput(StoreSection):
    """The documents in their store."""

    id_column: str = Field(
        "id", description="column of unique ids, string or integer; of PostgreSQL also uuid, which becomes text"
    )
    text_column: str = Field("text", description="column of texts")
    keep_columns: list[str] = Field([], description="further columns to take along")
    filter: str | None = Field(
        None, description="rows to take alone, in PostgreSQL's SQL, else as Ray Data has it: n > 5 and lang == 'en'; unset: all"
    )
    snapshot: int | None = Field(None, description="snapshot id of Iceberg or version of Delta to read; unset: the latest")


class FetchOutput(Section):
    """Where the documents go."""

    path: str = Field("documents", description="folder to write, any URI; then jobs.summarize reads it: --input.path")


class DeliverInput(OutputOfRuns):
    """The summaries to deliver."""

    run_id: RunId | None = Field(None, description="deliver up to this run; unset: up to the last one that is published")
    columns: list[str] = Field([], description="columns to deliver beside the id; empty: all of them")


class DeliverOutput(StoreSection):
    """The store that gets them."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "nightshift", description="what the table remembers this output folder by; another one for each that delivers into it"
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
    sort: Literal["window", "global"] = Field(
        "window",
        description="sort by length within each window, or first all of the run, which copies and shuffles the texts",
    )
    token_budget: Positive | Literal["auto"] = Field(
        "auto", description="padded source tokens of a decode batch; auto: what the free memory has room for"
    )


class DecodingOverrides(Section):
    """Decoding options that replace the bundle's own; unset ones keep them."""

    max_source_tokens: Positive | None = Field(None, description="longer sources are cut to this many subwords and marked so")
    max_target_tokens: Positive | None = Field(None, description="a summary that has not ended by then is cut")
    min_target_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="no </s> before this many subwords")
    max_target_ratio: Annotated[float, Field(gt=0)] | None = Field(
        None, description="also cut a summary at this many subwords for each one of its source, and max_target_extra more"
    )
    max_target_extra: Annotated[int, Field(ge=0)] | None = Field(None, description="see max_target_ratio, which must be set")
    no_repeat_ngram: Annotated[int, Field(ge=0)] | None = Field(
        None, description="never write the same n subwords twice in a summary; 0 turns this off"
    )
    beam_size: Positive | None = Field(None, description="hypotheses followed at a time; 1 is greedy search")
    length_penalty: Annotated[float, Field(ge=0)] | None = Field(
        None, description="beam search: how much longer hypotheses are favoured (alpha in Wu et al. 2016, eq. 14)"
    )
    coverage_penalty: Annotated[float, Field(ge=0)] | None = Field(
        None, description="beam search: weight of having attended to all of the source (beta there); needs attention"
    )

    def applied_to(self, defaults: DecodingConfig, model: ModelConfig) -> DecodingConfig:
        """The bundle's options with those set here put over them; UserError if they do not go together, or with the model."""
        try:
            options = DecodingConfig.model_validate(defaults.model_dump() | self.model_dump(exclude_none=True))
        except ValidationError as error:
            raise UserError(f"the options of --decoding do not go with the model's own: {explained(error)}") from None
        if self.coverage_penalty and model.attention == "none":
            raise UserError("--decoding.coverage_penalty goes by attention, of which this model has none; leave it out")
        return options


class WatchSection(Section):
    """What Prometheus is told."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "nightshift", description="name of this job in metrics, by which alerts tell it from others"
    )
    pushgateway: str | None = Field(
        None, description="URL of a Prometheus Pushgateway, which keeps how this job ended and when it last succeeded"
    )

    @model_validator(mode="after")
    def _is_an_address(self) -> WatchSection:
        url = urlsplit(self.pushgateway or "http://none")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"watch.pushgateway must be a URL such as http://pushgateway:9091, not {self.pushgateway!r}")
        if url.username is not None or url.password is not None:
            raise ValueError("watch.pushgateway must have no user or password: the configuration is kept with the output")
        return self


class PrepareConfig(JobConfig):
    """Turn a data set of text pairs into Parquet shards and a SentencePiece model."""

    input: PairsInput
    filter: PairsFilter = PairsFilter()
    tokenizer: TokenizerConfig = TokenizerConfig()
    output: PrepareOutput = PrepareOutput()


class TrainConfig(JobConfig):
    """Train a sequence-to-sequence model on prepared pairs; run it again to go on where it stopped."""

    data: TrainData = TrainData()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()
    scaling: ScalingSection = ScalingSection()
    output: TrainOutput = TrainOutput()
    watch: WatchSection = WatchSection()

    @model_validator(mode="after")
    def _coverage_needs_attention(self) -> TrainConfig:
        if self.decoding.coverage_penalty and self.model.attention == "none":
            raise ValueError("decoding.coverage_penalty goes by attention, and model.attention is none; set one of them")
        if self.training.coverage and self.model.attention == "none":
            raise ValueError("training.coverage is of attention, and model.attention is none; set one of them")
        return self


class EvaluateConfig(JobConfig):
    """Score a model's hypotheses against references and the lead baselines."""

    input: EvaluateInput = EvaluateInput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    metrics: MetricsOptions = MetricsOptions()
    resources: EvaluateResources = EvaluateResources()
    output: EvaluateOutput = EvaluateOutput()


class SummarizeConfig(JobConfig):
    """Summarize the documents of a Parquet store that are new, or have changed since the last run."""

    input: DocumentsInput = DocumentsInput()
    output: SummarizeOutput = SummarizeOutput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()
    watch: WatchSection = WatchSection()
    full: CliImplicitFlag[bool] = Field(False, description="do documents again that an earlier run did and that are unchanged")
    dry_run: CliImplicitFlag[bool] = Field(
        False, alias="dry-run", description="print the plan and what it will take, and stop there"
    )


class VerifyConfig(JobConfig):
    """Prove what a run wrote against its manifest and its input; status 0 if all is as it should be, 1 if not."""

    output: VerifyOutput = VerifyOutput()


class StatusConfig(JobConfig):
    """Say where a run stands, whichever machine does it, from its output folder alone."""

    output: StatusOutput = StatusOutput()


class CompactConfig(JobConfig):
    """Write the ledger of all finished runs, by which the next one knows what is done, into few files."""

    output: OutputOfRuns = OutputOfRuns()


class FetchConfig(JobConfig):
    """Copy the documents of an Iceberg, Delta or PostgreSQL table, or of JSON lines, to Parquet that summarize reads."""

    input: FetchInput
    output: FetchOutput = FetchOutput()


class DeliverConfig(JobConfig):
    """Bring the latest summary of each document that is new or has changed into a store, each once."""

    input: DeliverInput = DeliverInput()
    output: DeliverOutput
