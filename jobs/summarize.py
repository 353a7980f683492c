"""Summarize the documents of Parquet files: ``python -m jobs.summarize --config configs/summarize.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import EXIT_OK, EXIT_TOO_MANY_REJECTS, exit_on_user_error, printable
from pipeline.io.location import relative_to_cwd
from pipeline.monitoring.pushgateway import JobOutcome
from pipeline.runs.layout import REJECTS, REPORT, SUMMARIES, parts_path

if TYPE_CHECKING:
    from pipeline.inference.plan import Plan
    from pipeline.inference.run import RunResult
    from pipeline.runs.manifest import Manifest
    from pipeline.runs.progress import RunProgress
    from pipeline.runs.samples import ExampleDocument

# Other imports are inside functions: PyTorch and Ray take seconds to load, during which the screen should show something.

_EXAMPLE_CHARS = 220
_MAX_FILES = 5
_MAX_IDS = 3
_LINE_EVERY_S = 30.0
"""Interval of progress lines in a log: a run of hours should not have thousands."""


def main() -> int:
    config = load_config(SummarizeConfig, "summarize", sys.argv[1:])
    with JobOutcome("summarize", MonitoringSection() if config.dry_run else config.watch) as outcome:
        outcome.status = _summarize(config, outcome)
    return outcome.status


def _summarize(config: SummarizeConfig, outcome: JobOutcome) -> int:
    """Plan the run, execute it, and print the result. Returns the exit status, and sets the outcome of a run that ended."""
    console = new_console(job="summarize", name=config.watch.name)
    plan = _plan(console, config)
    console.tags["run"] = plan.run_id
    _print_plan(console, plan)
    if plan.is_finished():
        console.print(f"run {plan.run_id} is already finished: {plan.folder.uri}; set another --output.run_id to repeat it")
        return EXIT_OK
    if config.dry_run:
        _print_estimate(console, plan)
        return EXIT_OK
    result = _execute(console, plan)
    _print_result(console, plan, result)
    outcome.succeeded = result.published
    outcome.documents, outcome.documents_per_s = result.manifest.counts.outcomes, result.manifest.documents_per_s
    return EXIT_OK if result.published else EXIT_TOO_MANY_REJECTS


def _plan(console: Console, config: SummarizeConfig) -> Plan:
    with progress(console, "loading PyTorch and Ray") as show:
        from pipeline.inference.plan import plan_run

        show("checking the input, the model and the output")
        return plan_run(config)


def _print_plan(console: Console, plan: Plan) -> None:
    console.print(
        f"run {plan.run_id}: {plan.input.rows:,} documents in {len(plan.input.files):,} files "
        f"({plan.input.bytes / 1e6:,.1f} MB) of {relative_to_cwd(plan.config.input.path)}, with model "
        f"{plan.model_fingerprint[:12]}"
    )
    if plan.restart_reason:
        console.print(f"an earlier command was interrupted; the run starts over, because {plan.restart_reason}")
    elif plan.has_started:
        later = f"; {plan.later_files:,} files that were added since are left to the next run" if plan.later_files else ""
        console.print(f"an earlier command was interrupted; the run resumes{later}")
    for path, error in islice(plan.input.unread.items(), _MAX_FILES):
        console.print(f"skipped: {_name_file(path, error)}")


def _name_file(path: str, error: str) -> str:
    return error if path in error else f"{path}: {error}"


def _print_estimate(console: Console, plan: Plan) -> None:
    with progress(console, "starting Ray") as show:
        from pipeline.inference.actor_pool import wait_for_actors
        from pipeline.inference.estimate import estimate_run

        pool = wait_for_actors(plan.config.resources)
        show("decoding a sample of documents to estimate the time")
        estimate = estimate_run(plan, pool)
    actors = f"{pool.min_actors} to {pool.max_actors}" if pool.min_actors < pool.max_actors else f"{pool.max_actors}"
    console.print(
        f"actors:    {actors}, each with {pool.gpus:g} GPU, {pool.cpus:g} CPU and {pool.threads} threads\n"
        f"documents: about {estimate.documents:,} are new or changed, estimated from a sample of {estimate.sample}\n"
        f"decoding:  {estimate.source_tokens:,} source tokens, {estimate.documents_per_s:,.0f} documents/s\n"
        f"time:      {timedelta(seconds=round(estimate.seconds))} after startup, {estimate.actor_hours:,.2f} actor hours\n"
        f"output:    {plan.output.uri} (this dry run wrote nothing; remove --dry-run to start the run)"
    )


def _execute(console: Console, plan: Plan) -> RunResult:
    from pipeline.inference.run import execute

    name, processed = f"run {plan.run_id}", 0
    with progress(console, "", plan.input.rows, line_every_s=_LINE_EVERY_S, show_time_left=False) as show:

        def on_phase(phase: str) -> None:
            if console.is_terminal:
                show(name, processed, phase)
            else:
                console.print(f"{name}: {phase}")

        def on_progress(run: RunProgress) -> None:
            nonlocal processed
            processed = run.processed
            show(name, processed, run.details())

        on_phase("acquiring the lease on the output")
        return execute(plan, on_progress, on_phase)


def _print_result(console: Console, plan: Plan, result: RunResult) -> None:
    for example in result.examples:
        _print_example(console, example)
    manifest = result.manifest
    console.print("\n" + "\n".join(_count_lines(manifest)))
    if manifest.limits:
        console.print(manifest.limits)
    for path, unread in islice(manifest.unread.items(), _MAX_FILES):
        rows = "all" if unread.rows is None else f"{unread.rows:,}"
        console.print(f"unread, {rows} rows: {_name_file(path, unread.error)}")
    for folder in (SUMMARIES, REJECTS) if manifest.counts.rejected else (SUMMARIES,):
        console.print(f"{folder + ':':<11}{plan.output.child(parts_path(folder, plan.run_id)).uri}/*.parquet")
    console.print(f"manifest:  {plan.folder.uri}/manifest.json")
    console.print(f"report:    {plan.folder.uri}/{REPORT}")
    if not result.published:
        console.print(
            f"not published: {manifest.reject_share:.1%} of the documents were rejected or unread, but "
            f"--input.max_reject_share is {plan.config.input.max_reject_share:g}. To publish the run as it is, raise "
            "--input.max_reject_share and repeat the command; to start the run over, repair the files and repeat the command"
        )


def _print_example(console: Console, example: ExampleDocument) -> None:
    text = " ".join(example.opening.split())
    opening = text if len(text) <= _EXAMPLE_CHARS else text[:_EXAMPLE_CHARS] + " …"
    console.print(Text.assemble("\n", (printable(example.id), "bold"), "  ", (printable(opening), "dim")))
    console.print(f"  → {example.summary}")


def _count_lines(manifest: Manifest) -> Iterator[str]:
    counts = manifest.counts
    rejected = ", ".join(f"{reason} {rows:,}" for reason, rows in sorted(counts.rejected.items()))
    actors = "1 actor" if manifest.actors == 1 else f"{manifest.actors} actors"
    speed = f": {manifest.documents_per_s:,.0f} documents/s with {actors}" if counts.summarized else ""
    yield (
        f"summarized {counts.summarized:,} of {counts.read:,} documents in {manifest.seconds:.1f} s{speed}, "
        f"after {manifest.startup_s:.1f} s to start"
    )
    yield (
        f"rejected {sum(counts.rejected.values()):,}{f' ({rejected})' if rejected else ''}; truncated "
        f"{counts.truncated:,} sources; {counts.reached_length_limit:,} summaries reached the length limit"
    )
    if manifest.resumed:
        yield f"an earlier command had processed {manifest.resumed:,} of them"
    if counts.skipped:
        outcomes = ", ".join(f"{rows:,} {outcome}" for outcome, rows in sorted(counts.skipped.items(), reverse=True))
        yield f"skipped {sum(counts.skipped.values()):,} that have not changed since an earlier run ({outcomes})"
    if manifest.removed.documents:
        ids = ", ".join(manifest.removed.ids[:_MAX_IDS])
        yield f"{manifest.removed.documents:,} documents of earlier runs are no longer in the input: {ids}, …"


if __name__ == "__main__":
    exit_on_user_error("summarize", main)
