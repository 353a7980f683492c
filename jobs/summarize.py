"""Summarize every document of a Parquet store: ``python -m jobs.summarize --config configs/summarize.yaml``."""

from __future__ import annotations

import sys
from datetime import timedelta

from rich.console import Console
from rich.text import Text

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import EXIT_TOO_MANY_REJECTS, exit_on_user_error, printable
from pipeline.inference.actor_pool import wait_for_actors
from pipeline.inference.estimate import estimate_run
from pipeline.inference.plan import Plan, plan_run
from pipeline.inference.run import RunResult, execute
from pipeline.io.location import relative_to_cwd
from pipeline.monitoring.pushgateway import JobOutcome
from pipeline.runs.layout import REJECTS, REPORT, SUMMARIES, parts_path
from pipeline.runs.manifest import Manifest
from pipeline.runs.stats import ExampleDocument

_OPENING_CHARS = 220
_SHOWN_FILES = 5
_LINE_EVERY_S = 30.0
"""In a log: of a whole night, which has some thousand of them."""


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(SummarizeConfig, "summarize", sys.argv[1:])
    with JobOutcome("summarize", MonitoringSection() if config.dry_run else config.watch) as outcome:
        outcome.status = _summarize(config, outcome)
    return outcome.status


def _summarize(config: SummarizeConfig, outcome: JobOutcome) -> int:
    """Plan, run and report; the exit status. outcome: learns of a run that comes to its end."""
    console = new_console(job="summarize", name=config.watch.name)
    plan = plan_run(config)
    console.tags["run"] = plan.run_id
    console.print(
        f"run {plan.run_id}: {plan.store.rows:,} documents in {len(plan.store.files):,} files "
        f"({plan.store.bytes / 1e6:,.1f} MB) of {relative_to_cwd(config.input.path)}, with model {plan.model_fingerprint[:12]}"
    )
    if plan.anew:
        console.print(f"the run was cut off and begins anew: {plan.anew}")
    elif plan.begun:
        later = f"; {plan.waiting:,} files that came since are for the next run" if plan.waiting else ""
        console.print(f"the run was cut off and goes on from there{later}")
    for path, error in list(plan.store.unread.items())[:_SHOWN_FILES]:
        console.print(f"left out: {error}" if path in error else f"left out {path}: {error}")
    if plan.is_finished():
        console.print(f"run {plan.run_id} is finished already: {plan.folder.uri}; set another --output.run_id to do it again")
        return 0
    if config.dry_run:
        _show_plan(console, plan)
        return 0
    finished = _execute(console, plan)
    _report(console, plan, finished)
    outcome.succeeded = finished.published
    outcome.documents, outcome.documents_per_s = finished.manifest.counts.outcomes, finished.manifest.documents_per_s
    return 0 if finished.published else EXIT_TOO_MANY_REJECTS


def _show_plan(console: Console, plan: Plan) -> None:
    """The actors that the cluster has room for, and what the run will take."""
    with progress(console, "decoding a few documents to see how long the run takes"):
        actors = wait_for_actors(plan.config.resources)
        estimate = estimate_run(plan, actors)
    number = f"{actors.fewest} to {actors.number}" if actors.fewest < actors.number else f"{actors.number}"
    console.print(
        f"actors:    {number}, each with {actors.gpus:g} GPU, {actors.cpus:g} CPU and {actors.threads} threads\n"
        f"new:       some {estimate.documents:,} documents, by a sample of {estimate.sample}\n"
        f"decoding:  {estimate.source_tokens:,} source tokens, {estimate.documents_per_s:,.0f} documents/s\n"
        f"it takes:  {timedelta(seconds=round(estimate.seconds))} after the start, {estimate.actor_hours:,.2f} actor hours\n"
        f"writes to: {plan.output.uri} (nothing is written yet; without --dry-run the run begins)"
    )


def _execute(console: Console, plan: Plan) -> RunResult:
    """Run the plan and show where it stands."""
    run = f"run {plan.run_id}"
    doing = f"{run}: starting Ray and loading the model"
    with progress(console, doing, plan.store.rows, _LINE_EVERY_S, says_time_left=True) as show:
        return execute(plan, lambda at: show(run, at.seen, at.details()))


def _report(console: Console, plan: Plan, finished: RunResult) -> None:
    for example in finished.examples:
        _show(console, example)
    manifest = finished.manifest
    console.print(_counts(manifest))
    console.print(manifest.limits)
    for path, unread in list(manifest.unread.items())[:_SHOWN_FILES]:
        console.print(f"unread: {'all' if unread.rows is None else f'{unread.rows:,}'} rows of {path}: {unread.error}")
    kinds = (SUMMARIES, REJECTS) if manifest.counts.rejected else (SUMMARIES,)
    for kind in kinds:
        console.print(f"{kind + ':':<11}{plan.output.child(parts_path(kind, plan.run_id)).uri}/*.parquet")
    console.print(f"manifest:  {plan.folder.uri}/manifest.json")
    console.print(f"report:    {plan.folder.uri}/{REPORT}")
    if not finished.published:
        share = plan.config.input.max_reject_share
        console.print(
            f"not published: {manifest.reject_share:.1%} of the documents were rejected or unread, and "
            f"--input.max_reject_share is {share:g}; with a higher one the same command publishes the run as it is, and with "
            "mended files it begins anew; until then it comes back to this run"
        )


def _show(console: Console, example: ExampleDocument) -> None:
    opening = " ".join(example.opening.split())
    shown = opening if len(opening) <= _OPENING_CHARS else opening[:_OPENING_CHARS] + " …"
    console.print(Text.assemble("\n", (printable(example.id), "bold"), "  ", (printable(shown), "dim")))
    console.print(f"  → {example.summary}")


def _counts(manifest: Manifest) -> str:
    counts = manifest.counts
    rejected = ", ".join(f"{reason} {rows:,}" for reason, rows in sorted(counts.rejected.items()))
    lines = [
        "",
        f"summarized {counts.summarized:,} of {counts.read:,} documents in {manifest.seconds:.1f} s: "
        f"{manifest.documents_per_s:,.0f} documents/s with {manifest.actors} actors "
        f"(after {manifest.startup_s:.1f} s to start)",
        f"rejected {sum(counts.rejected.values()):,}{f' ({rejected})' if rejected else ''}; "
        f"{counts.truncated:,} sources were cut to what the model reads, "
        f"{counts.reached_length_limit:,} summaries reached the length limit",
    ]
    if manifest.resumed:
        lines.append(f"{manifest.resumed:,} of them were done before the run was cut off")
    if counts.skipped:
        kinds = " and ".join(f"{rows:,} {kind}" for kind, rows in sorted(counts.skipped.items(), reverse=True))
        lines.append(f"skipped {sum(counts.skipped.values()):,} that are as an earlier run found them ({kinds} then)")
    if manifest.removed.documents:
        some = ", ".join(manifest.removed.ids[:3])
        lines.append(f"{manifest.removed.documents:,} that an earlier run did are not in the input any more: {some} …")
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error("summarize", main)
