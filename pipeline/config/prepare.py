"""The options of jobs.prepare."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import JobConfig, Section
from pipeline.config.types import Positive, Share


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


class PrepareOutput(Section):
    """Where the pairs go."""

    path: str = Field("prepared", description="folder to write; it gets train/, dev/, test/, tokenizer.model, prepare.json")
    rows_per_shard: Positive = Field(20_000, description="rows in one Parquet shard, at most")
    overwrite: bool = Field(False, description="replace what an earlier prepare wrote there, once the new is whole")


class PrepareConfig(JobConfig):
    """Turn a data set of text pairs into Parquet shards and a SentencePiece model."""

    input: PairsInput
    filter: PairsFilter = PairsFilter()
    tokenizer: TokenizerConfig = TokenizerConfig()
    output: PrepareOutput = PrepareOutput()
