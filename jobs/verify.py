"""Check the output of a run against its manifest and input: ``python -m jobs.verify --output.path out``."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.runs import VerifyConfig
from pipeline.errors import EXIT_NOT_VERIFIED, EXIT_OK, exit_on_user_error
from pipeline.io.location import open_location
from pipeline.verify.findings import VerificationReport
from pipeline.verify.verify import verify

_MAX_FINDINGS = 12


def main() -> int:
    config = load_config(VerifyConfig, "verify", sys.argv[1:])
    console = new_console()
    with progress(console, "reading the output and the ids of the input"):
        report = verify(open_location(config.output.path, "--output.path"), config.output.run_id)
    _print_report(console, report)
    return EXIT_NOT_VERIFIED if report.findings else EXIT_OK


def _print_report(console: Console, report: VerificationReport) -> None:
    for finding in report.findings[:_MAX_FINDINGS]:
        console.print(str(finding))
    if len(report.findings) > _MAX_FINDINGS:
        console.print(f"and {len(report.findings) - _MAX_FINDINGS:,} more")
    if not report.findings:
        table = Table(show_header=False, title=f"run {report.run_id} matches its manifest", title_justify="left")
        for item, amount in report.verified.items():
            table.add_row(item, amount)
        console.print(table)
    for note in report.notes:
        console.print(f"not verified: {note}")
    if report.findings:
        console.print(f"run {report.run_id} does not match its manifest: {len(report.findings):,} findings")


if __name__ == "__main__":
    exit_on_user_error("verify", main)
