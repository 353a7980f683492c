"""Turn a data set of text pairs into Parquet shards and a tokenizer: ``python -m jobs.prepare --config configs/prepare.yaml``."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from pipeline.config import PrepareConfig, load_config
from pipeline.errors import exit_on_user_error
from pipeline.training.pairs import Prepared, prepare


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(PrepareConfig, "prepare", sys.argv[1:])
    console = Console(highlight=False, soft_wrap=True)
    prepared = prepare(config, lambda split, rows: console.print(f"{split}: {rows:,} pairs so far"))
    _show(console, prepared)
    path = config.output.path
    console.print(f"prepared: {path}/{{{','.join(prepared.splits)}}} and {path}/tokenizer.model ({prepared.vocabulary_size} subwords)")
    console.print(
        f"next: python -m jobs.train --config configs/train.yaml --data.train {path}/train --data.dev {path}/dev "
        f"--data.tokenizer {path}/tokenizer.model"
    )
    return 0


def _show(console: Console, prepared: Prepared) -> None:
    rows = Table("split", "kept", "dropped", "why", title="Pairs")
    for name, report in prepared.splits.items():
        why = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.most_common())
        rows.add_row(name, f"{report.kept:,}", f"{report.dropped.total():,}", why)
    console.print(rows)
    for name, report in prepared.splits.items():
        for reason, places in report.examples.items():
            console.print(f"  {name}, {reason}: {'; '.join(places)}", markup=False)
    lengths = Table("", *(f"{share} %" for share in prepared.source_lengths), title="Subwords, percentiles of training pairs")
    lengths.add_row("source", *map(str, prepared.source_lengths.values()))
    lengths.add_row("target", *map(str, prepared.target_lengths.values()))
    console.print(lengths)


if __name__ == "__main__":
    exit_on_user_error("prepare", main)
