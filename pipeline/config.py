"""One typed, validated configuration per job.

Values come from the defaults below, then a YAML file (``--config FILE``), then dotted options on the command line
(``--input.path s3://bucket/docs``); the later wins. Nothing here knows what the options do, only what they may be.
"""

from __future__ import annotations

import argparse
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.errors import UserError

SAMPLE = Path(__file__).parent / "sample"

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of ``<pad>``, ``<unk>``, ``<s>`` and ``</s>`` in every tokenizer and model: a convention, not an option."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A group of options. An option that does not exist is an error, so a misspelt one cannot be silently ignored."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ModelConfig(Section):
    """The network's shape."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="recurrent cell of encoder and decoder")
    embedding_size: Positive = Field(256, description="size of a token's embedding")
    hidden_size: Positive = Field(256, description="units per layer of the decoder, and per direction of the encoder")
    layers: Positive = Field(1, description="stacked recurrent layers, in the encoder and in the decoder")
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
    tied_embeddings: bool = Field(
        True, description="source, target and output layers share one embedding table"
    )

    @model_validator(mode="after")
    def _copy_needs_attention(self) -> ModelConfig:
        if self.copy_source and self.attention == "none":
            raise ValueError("copy: true needs an attention to copy by; set attention to dot, general or additive")
        return self


class DecodingConfig(Section):
    """How a summary is searched for. Saved in the bundle as its defaults."""

    max_source_tokens: Positive = Field(128, description="longer sources are cut to this many subwords and marked so")
    max_target_tokens: Positive = Field(48, description="a summary that has not ended by then is cut")
    min_target_tokens: Annotated[int, Field(ge=0)] = Field(1, description="no </s> before this many subwords")
    no_repeat_ngram: Annotated[int, Field(ge=0)] = Field(
        3, description="never write the same n subwords twice in a summary; 0 turns this off"
    )


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
    train_rows: Positive = Field(500_000, description="pairs sampled for the training of the tokenizer")


class PairsInput(Section):
    """Where the pairs come from."""

    train: str = Field(..., description="path, glob or fsspec URL of the training pairs, or a Hugging Face dataset")
    dev: str | None = Field(None, description="the same for the development pairs; without it, a share of train")
    test: str | None = Field(None, description="the same for test pairs")
    format: Literal["auto", "tsv", "jsonl", "parquet", "lines", "datasets"] = Field(
        "auto", description="auto goes by the file name's ending; .xz, .gz, .bz2 and .zst are opened on the way"
    )
    columns: list[str] | None = Field(None, description="column names of a TSV file without a header line")
    pattern: str | None = Field(
        None, description="for format lines: a regular expression with the groups (?P<source>…) and (?P<target>…)"
    )
    source_column: str = Field("source", description="column of the source text; a list of strings is joined")
    target_column: str = Field("target", description="column of the target text")
    id_column: str | None = Field(None, description="column of a pair's id; without it, rows are numbered")
    dev_share: Share = Field(0.02, description="share of train kept for development, split by source, if dev is unset")
    test_share: Share = Field(0.0, description="share of train kept for test, split by source, if test is unset")
    max_rows: Positive | None = Field(None, description="read no more rows than this from each input")


class PairsFilter(Section):
    """Which pairs are dropped."""

    min_source_chars: Annotated[int, Field(ge=0)] = Field(1, description="shorter sources are dropped")
    min_target_chars: Annotated[int, Field(ge=0)] = Field(1, description="shorter targets are dropped")
    max_chars: Positive = Field(1_000_000, description="longer sources or targets are dropped")


class PrepareOutput(Section):
    """Where the pairs go."""

    path: str = Field("prepared", description="folder to write; it gets train/, dev/, test/, tokenizer.model, prepare.json")
    rows_per_shard: Positive = Field(20_000, description="rows in one Parquet shard")
    overwrite: bool = Field(False, description="replace what an earlier prepare wrote there")


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
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="peak rate of Adam")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(400, description="steps of linear warm-up")
    final_rate_share: Share = Field(0.05, description="rate at the end, as a share of the peak; decays by a cosine")
    clip_norm: Annotated[float, Field(gt=0)] = Field(2.0, description="largest norm of the gradient")
    precision: Precision = Field("auto", description="auto: bfloat16 where the device computes in it, else float32")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="of the weights, dropout and order")
    validate_minutes: Annotated[float, Field(gt=0)] = Field(
        5.0, description="minutes between validations, each of which keeps a checkpoint; the end has one in any case"
    )
    validate_rows: Positive = Field(1000, description="development pairs used at a validation, the first ones")
    best_by: Literal["rougeL", "exact_match", "dev_loss"] = Field(
        "rougeL", description="which figure of the validations chooses the checkpoint that becomes the bundle"
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
    use_gpu: bool | None = Field(
        None, description="one GPU a worker, and NCCL instead of gloo; unset: if the cluster has any"
    )
    threads: Positive | None = Field(None, description="CPU threads a worker computes with; unset: its share of the cores")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        0, description="how often to go on by itself from the last checkpoint after a worker was lost"
    )


class OutputPath(Section):
    """Where results go."""

    path: str = Field("out", description="folder to write")


class TrainOutput(Section):
    """Where the model goes."""

    path: str = Field("trained", description="folder to write; it gets bundle/, checkpoints/, train.jsonl, config.yaml")


class EvaluateInput(Section):
    """Pairs to evaluate on."""

    path: str = Field("prepared/dev", description="folder of pair shards, as prepare writes them, or a Parquet file")
    max_rows: Positive | None = Field(None, description="evaluate on the first rows only")


class EvaluateOptions(Section):
    """What is measured."""

    bootstrap_samples: Annotated[int, Field(ge=0)] = Field(1000, description="resamples for the 95 % intervals; 0: none")
    lead_tokens: Positive = Field(10, description="words of the lead-words baseline")
    rouge_tokenizer: Literal["standard", "unicode"] = Field(
        "standard", description="standard knows a to z and 0 to 9 alone, as published figures do; unicode: any script"
    )
    bleu_tokenizer: Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = Field(
        "13a", description="sacrebleu's; zh, ja-mecab or char where text has no spaces"
    )
    seed: int = Field(1, description="of the resampling")


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


class SummarizeOutput(Section):
    """Where the summaries go."""

    path: str = Field("out", description="folder to write, any URI that pyarrow opens")
    run_id: str | None = Field(None, description="name of this run; unset: the time in UTC")


class Resources(Section):
    """What the run computes with."""

    actors: Positive | None = Field(None, description="model actors; unset: one per GPU, or without GPUs one per core")
    use_gpu: bool | None = Field(None, description="one GPU an actor; unset: if the cluster has any")
    threads: Positive | None = Field(None, description="CPU threads an actor computes with; unset: its share of the cores")
    tokenizers: Positive | None = Field(None, description="most tokenizer tasks at a time; unset: as many as find room")
    window_rows: Positive = Field(512, description="documents sorted by length and written together")
    token_budget: Positive = Field(16384, description="padded source tokens of a decode batch")
    precision: Precision = Field("float32", description="float32 gives the same summary whatever the batch")


class DecodingOverrides(Section):
    """Decoding options that replace the bundle's own; unset ones keep them."""

    max_source_tokens: Positive | None = Field(None, description="longer sources are cut to this many subwords and marked so")
    max_target_tokens: Positive | None = Field(None, description="a summary that has not ended by then is cut")
    min_target_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="no </s> before this many subwords")
    no_repeat_ngram: Annotated[int, Field(ge=0)] | None = Field(None, description="never write the same n subwords twice; 0: off")

    def applied_to(self, defaults: DecodingConfig) -> DecodingConfig:
        """The bundle's options with those set here put over them."""
        return defaults.model_copy(update=self.model_dump(exclude_none=True))


class JobConfig(BaseSettings):
    """Base of the four jobs' configurations."""

    model_config = SettingsConfigDict(extra="forbid", protected_namespaces=())

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values given alone: an environment variable that happens to be called MODEL must not set one."""
        return (init_settings,)


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


class EvaluateConfig(JobConfig):
    """Score a model's hypotheses against references and the lead baselines."""

    input: EvaluateInput = EvaluateInput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    options: EvaluateOptions = EvaluateOptions()
    output: EvaluateOutput = EvaluateOutput()


class SummarizeConfig(JobConfig):
    """Summarize every document of a Parquet store."""

    input: DocumentsInput = DocumentsInput()
    output: SummarizeOutput = SummarizeOutput()
    model: ModelPath = ModelPath()
    decoding: DecodingOverrides = DecodingOverrides()
    resources: Resources = Resources()


C = TypeVar("C", bound=JobConfig)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def load_config(cls: type[C], job: str, argv: Sequence[str]) -> C:
    """Build ``cls`` from defaults, the file after ``--config`` and the dotted options in ``argv``.

    Raises UserError that names the option at fault, and the nearest right one for an option that does not exist.
    ``--help`` prints every option and exits 0.
    """
    known = {name: field for name, field, _ in _options(cls)}
    parser = _Parser(prog=f"python -m jobs.{job}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    own, rest = parser.parse_known_args(list(argv))
    if own.help:
        print(_help(cls, job))
        raise SystemExit(0)
    rest = [_checked_option(word, known) for word in rest]
    from_file = _read_yaml(own.config) if own.config else {}
    source: CliSettingsSource[Any] = CliSettingsSource(
        cls,
        cli_parse_args=rest,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        root_parser=_Parser(prog=f"python -m jobs.{job}", add_help=False, allow_abbrev=False),
        cli_parse_none_str="null",
    )
    values = _merged(from_file, source())
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(_explained(error, known)) from None


def _checked_option(word: str, known: dict[str, Any]) -> str:
    name = word[2:].split("=", 1)[0]
    if not word.startswith("--") or name in known:
        return word
    raise UserError(f"no option --{name}{_nearest(name, known)}; --help lists the options")


def _nearest(name: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        last = name.rsplit(".", 1)[-1]
        near = [option for option in known if option.rsplit(".", 1)[-1] == last][:1]
    return f" (did you mean --{near[0]}?)" if near else ""


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f"cannot read --config {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold sections such as 'input:', not a {type(values).__name__}")
    return values


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merged(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged


def _explained(error: ValidationError, known: dict[str, Any]) -> str:
    lines = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
        if fault["type"] == "extra_forbidden":
            lines.append(f"no option {name}{_nearest(name, known)}")
        elif fault["type"] == "missing":
            inner = [option for option, field in known.items() if option.startswith(name + ".") and field.is_required()]
            lines.append(f"option --{inner[0] if inner else name} must be set")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            given = "" if isinstance(fault["input"], dict | BaseModel) else f", not {fault['input']!r}"
            lines.append(f"option --{name}: {message[0].lower()}{message[1:]}{given}")
    return "; ".join(lines)


def _options(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf option of a configuration: dotted name, pydantic field, default."""
    for attribute, field in cls.model_fields.items():
        name = prefix + (field.alias or attribute)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, name + ".")
        else:
            yield name, field, field.default


def _help(cls: type[JobConfig], job: str) -> str:
    lines = [
        f"usage: python -m jobs.{job} [--config FILE] [--section.option VALUE …]",
        "",
        cls.__doc__ or "",
        "",
        f"  --config FILE\n      YAML file of options, such as configs/{job}.yaml; options on the command line win",
    ]
    for name, field, default in _options(cls):
        shown = "must be set" if field.is_required() else f"default: {'unset' if default is None else default}"
        lines.append(f"  --{name} {_type_name(field.annotation)}  ({shown})\n      {field.description}")
    return "\n".join(lines)


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return "|".join(str(choice) for choice in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return "|".join(_type_name(kind) for kind in arguments if kind is not type(None))
    if origin is list:
        return f"{_type_name(arguments[0])},…"
    return str(getattr(annotation, "__name__", annotation))
