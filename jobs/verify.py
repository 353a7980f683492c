"""Prove a run's output against its manifest and its input: ``python -m jobs.verify --output.path out``."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.runs import VerifyConfig
from pipeline.errors import EXIT_STOPPED, exit_on_user_error
from pipeline.io.location import open_location
from pipeline.verify.findings import VerificationReport
from pipeline.verify.verify import verify

_SHOWN = 12


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(VerifyConfig, "verify", sys.argv[1:])
    console = new_console()
    with progress(console, "reading the output and the ids of the input"):
        verdict = verify(open_location(config.output.path, "--output.path"), config.output.run_id)
    _show(console, verdict)
    return EXIT_STOPPED if verdict.findings else 0


def _show(console: Console, verdict: VerificationReport) -> None:
    for finding in verdict.findings[:_SHOWN]:
        console.print(str(finding))
    if len(verdict.findings) > _SHOWN:
        console.print(f"and {len(verdict.findings) - _SHOWN:,} more")
    if not verdict.findings:
        table = Table(show_header=False, title=f"run {verdict.run_id} is what its manifest says", title_justify="left")
        for what, how_much in verdict.proved.items():
            table.add_row(what, how_much)
        console.print(table)
    for note in verdict.notes:
        console.print(f"not proved: {note}")
    if verdict.findings:
        console.print(f"run {verdict.run_id} is not what its manifest says: {len(verdict.findings):,} findings")


if __name__ == "__main__":
    exit_on_user_error("verify", main)
