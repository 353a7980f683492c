"""Turn a data set of text pairs into shards and a tokenizer: ``python -m jobs.prepare --config configs/prepare.yaml``."""

from __future__ import annotations

import shlex
import sys

from rich.console import Console
from rich.table import Table

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.prepare import PairsInput, PrepareConfig
from pipeline.errors import EXIT_OK, exit_on_user_error
from pipeline.io.location import open_location
from pipeline.prepare.extract import SplitReport
from pipeline.prepare.prepare import TOKENIZER_FILE, PrepareProgress, PrepareResult, prepare


def main() -> int:
    """Run the job and return its exit status."""
    config = load_config(PrepareConfig, "prepare", sys.argv[1:])
    console = new_console()
    with progress(console, "") as show:
        prepared = prepare(config, lambda state: show(state.doing, details=_row_counts(state)))
    console.print(_pairs_table(prepared, config.input))
    for role, report in prepared.splits.items():
        _print_notes(console, role, report)
    console.print(_lengths_table(prepared))
    output = open_location(config.output.path, "--output.path")
    shards = output.child(f"{{{','.join(prepared.splits)}}}/*.parquet").uri
    train, dev, tokenizer = (output.child(name).uri for name in ("train", "dev", TOKENIZER_FILE))
    console.print(
        f"prepared: {shards} and {tokenizer}, with {prepared.vocabulary_size:,} subwords, "
        + (f"trained on {prepared.tokenizer_pairs:,} pairs" if prepared.tokenizer_pairs else f"of {config.tokenizer.path}")
    )
    if "dev" not in prepared.splits or not prepared.splits["dev"].kept:
        console.print(
            "warning: there are no development pairs, which training needs; set --input.dev or raise --input.dev_share"
        )
    data = ["--data.train", train, "--data.dev", dev]
    if prepared.tokenizer_bundle:
        start = ["--model.init_from", prepared.tokenizer_bundle, *data]
    else:
        start = ["--config", "configs/train.yaml", *data, "--data.tokenizer", tokenizer]
    console.print(f"next: python -m jobs.train {shlex.join(start)}")
    return EXIT_OK


def _row_counts(state: PrepareProgress) -> str:
    return f"{state.rows:,} rows, {state.pairs:,} pairs kept" if state.rows else ""


def _pairs_table(prepared: PrepareResult, inputs: PairsInput) -> Table:
    table = Table("split", "rows read", "pairs kept", "dropped", "reasons", title="Pairs")
    for role, report in prepared.splits.items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.most_common())
        read = "from train" if getattr(inputs, role) is None else f"{report.rows:,}"
        table.add_row(role, read, f"{report.kept:,}", f"{report.dropped.total():,}", reasons)
    return table


def _print_notes(console: Console, role: str, report: SplitReport) -> None:
    """Print where the first dropped rows are, and what may be wrong with the kept ones."""
    for reason, origins in report.examples.items():
        more = "; …" if report.dropped[reason] > len(origins) else ""
        console.print(f"{role}: {reason} at {'; '.join(origins)}{more}")
    if added := report.extra - report.merged:
        console.print(f"{role}: lists of targets added {added:,} pairs (--input.target_list)")
    if report.merged:
        console.print(f"{role}: {report.kept:,} pairs have {report.kept + report.merged:,} references (--input.target_list)")
    if report.damaged:
        console.print(f"{role}: {report.damaged:,} pairs contain U+FFFD, in place of invalid UTF-8 or a lone surrogate")
    if report.held_out:
        console.print(f"{role}: {report.held_out:,} pairs have a source that is also in dev or test (--filter.drop_held_out)")


def _lengths_table(prepared: PrepareResult) -> Table:
    title = f"Length in subwords, percentiles of {prepared.measured_pairs:,} training pairs"
    table = Table("", *(f"{share} %" for share in prepared.source_subwords), title=title)
    table.add_row("source", *(f"{length:,}" for length in prepared.source_subwords.values()))
    table.add_row("target", *(f"{length:,}" for length in prepared.target_subwords.values()))
    return table


if __name__ == "__main__":
    exit_on_user_error("prepare", main)
