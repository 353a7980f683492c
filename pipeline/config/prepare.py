"""Options of jobs.prepare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, Section
from pipeline.config.types import Positive, Share, StyleName


class PairsInput(Section):
    """Pairs to prepare."""

    train: str = Field(
        ...,
        description="training pairs: path, glob, URL, ARCHIVE://FILE::PATH, Hugging Face data set NAME[:CONFIG][@SPLIT], or "
        "an output folder of jobs.summarize, whose documents and summaries become pairs",
    )
    dev: str | None = Field(None, description="development pairs, in the same forms; unset: a share of train")
    test: str | None = Field(None, description="test pairs, in the same forms; unset: a share of train")
    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "lines", "datasets"] = Field(
        "auto", description="file format; auto: by the file name. Files ending in .xz, .gz, .bz2 or .zst are decompressed"
    )
    columns: list[str] | None = Field(
        None, description="column names of TSV or CSV files without a header line; unset: files have a header line"
    )
    pattern: str | None = Field(
        None, description="format lines: a regular expression with the groups (?P<source>…) and (?P<target>…)"
    )
    source_column: str = Field(
        "source", description="column of source texts; a.b: field b of column a; a list of strings is joined by spaces"
    )
    target_column: str = Field("target", description="column of target texts; a.b: field b of column a")
    target_list: Literal["each", "first", "join"] = Field(
        "each",
        description="use of a list of target strings; each: one training pair per string, and one development or test pair "
        "with all as references; first: only the first; join: by spaces",
    )
    style: StyleName | None = Field(
        None, description="style of the targets, such as title: a model of several styles can be asked for it; unset: none"
    )
    style_column: str | None = Field(None, description="column of each target's style; unset: all have input.style")
    id_column: str | None = Field(None, description="column of pair ids; unset: rows are numbered from 0")
    dev_share: Share = Field(0.02, description="share of train to use as dev, divided by source text, if dev is unset")
    test_share: Share = Field(0.0, description="share of train to use as test, divided by source text, if test is unset")
    split_seed: int = Field(1, description="random seed that selects the shares of dev and test")
    max_rows: Positive | None = Field(None, description="read at most this many rows from each input; unset: all rows")

    @model_validator(mode="after")
    def _check_style(self) -> PairsInput:
        if self.style and self.style_column:
            raise ValueError("style and style_column are both set; unset one of them")
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> PairsInput:
        if (0 if self.dev else self.dev_share) + (0 if self.test else self.test_share) >= 1:
            raise ValueError("dev_share and test_share leave no training pairs; their sum must be below 1")
        return self


class PairsFilter(Section):
    """Pairs to drop."""

    min_source_chars: Annotated[int, Field(ge=0)] = Field(1, description="drop pairs with a shorter source")
    min_target_chars: Annotated[int, Field(ge=0)] = Field(1, description="drop pairs with a shorter target")
    max_chars: Positive = Field(1_000_000, description="drop pairs with a longer source or target")
    min_score: float | None = Field(
        None, description="drop summaries of a model with a lower score, its mean log-probability of a token; unset: none"
    )
    keep_unfinished: bool = Field(False, description="keep summaries of a model that the length limit cut")
    drop_held_out: bool = Field(
        True, description="drop training pairs whose source is also in the dev or test input; false: only count them"
    )


class TokenizerConfig(Section):
    """The SentencePiece tokenizer, which is trained on the pairs unless there is one."""

    path: str | None = Field(
        None,
        description="tokenizer to use: a model bundle, sample (the shipped one), or a SentencePiece file; unset: train one",
    )
    vocabulary_size: Positive = Field(8000, description="number of subwords, including 256 bytes, 4 special and 8 style tokens")
    algorithm: Literal["unigram", "bpe"] = Field("unigram", description="SentencePiece model type")
    character_coverage: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.9995, description="share of characters that become subwords; all others are encoded as bytes"
    )
    normalization: Literal["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"] = Field(
        "identity", description="Unicode normalization before encoding; identity: only collapse white space"
    )
    split_by_script: bool = Field(
        True, description="never join letters with symbols, or two scripts, in a subword; false: I_WALK can be one subword"
    )
    train_rows: Positive = Field(500_000, description="maximum number of pairs sampled to train the tokenizer")

    @model_validator(mode="after")
    def _check_path(self) -> TokenizerConfig:
        if self.path is not None and (unused := sorted(self.model_fields_set - {"path"})):
            raise ValueError(f"{unused[0]} is for training a tokenizer, but path is set; unset one of them")
        return self


class PrepareOutput(Section):
    """Where to write the pairs."""

    path: str = Field("prepared", description="output folder, for train/, dev/, test/, tokenizer.model and prepare.json")
    rows_per_shard: Positive = Field(20_000, description="maximum number of rows in a Parquet shard")
    overwrite: bool = Field(False, description="replace an earlier output of prepare, once the new one is complete")


class PrepareConfig(JobConfig):
    """Turn a data set of text pairs into Parquet shards and a SentencePiece model."""

    input: PairsInput
    filter: PairsFilter = PairsFilter()
    tokenizer: TokenizerConfig = TokenizerConfig()
    output: PrepareOutput = PrepareOutput()
