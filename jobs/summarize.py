"""Summarize every document of a Parquet store: ``python -m jobs.summarize --config configs/summarize.yaml``."""

from __future__ import annotations

import sys
from datetime import timedelta

from rich.console import Console
from rich.text import Text

from jobs.screen import new_console, progress
from pipeline.config import SummarizeConfig
from pipeline.errors import exit_on_user_error
from pipeline.inference.manifest import Example, Manifest
from pipeline.inference.pool import place_actors
from pipeline.inference.rehearsal import rehearse
from pipeline.inference.run import Finished, Plan, Progress, execute, plan_run
from pipeline.options import load_config
from pipeline.storage import from_here

_OPENING_CHARS = 220
_DRY_RUN = "--dry-run"


def main() -> int:
    """Run the job; the exit status."""
    options = sys.argv[1:]
    config = load_config(SummarizeConfig, "summarize", [option for option in options if option != _DRY_RUN])
    console = new_console()
    plan = plan_run(config)
    console.print(
        f"run {plan.run_id}: {plan.store.rows:,} documents in {len(plan.store.files):,} files "
        f"({plan.store.bytes / 1e6:,.1f} MB) of {from_here(config.input.path)}, with model {plan.model_fingerprint[:12]}"
    )
    if plan.is_finished():
        console.print(f"run {plan.run_id} is finished already: {plan.folder.uri}; set another --output.run_id to do it again")
        return 0
    if _DRY_RUN in options:
        _show_plan(console, plan)
    else:
        _report(console, plan, _execute(console, plan))
    return 0


def _show_plan(console: Console, plan: Plan) -> None:
    """The actors that the cluster has room for, and what the run will take."""
    with progress(console, "decoding a few documents to see how long the run takes"):
        actors = place_actors(plan.config.resources)
        estimate = rehearse(plan, actors)
    number = f"{actors.fewest} to {actors.number}" if actors.fewest < actors.number else f"{actors.number}"
    console.print(
        f"actors:    {number}, each with {actors.gpus:g} GPU, {actors.cpus:g} CPU and {actors.threads} threads\n"
        f"decoding:  {estimate.source_tokens:,} source tokens, {estimate.documents_per_s:,.0f} documents/s by a sample of "
        f"{estimate.sample}\n"
        f"it takes:  {timedelta(seconds=round(estimate.seconds))} after the start, {estimate.actor_hours:,.2f} actor hours\n"
        f"writes to: {plan.output.uri} (nothing is written yet; without {_DRY_RUN} the run begins)"
    )


def _execute(console: Console, plan: Plan) -> Finished:
    """Run the plan and show where it stands."""
    run = f"run {plan.run_id}"
    with progress(console, f"{run}: starting Ray and loading the model", plan.store.rows) as show:

        def on_progress(at: Progress) -> None:
            show(run, at.counts.read, f"{at.counts.read / max(at.seconds, 1e-9):,.0f} documents/s")

        return execute(plan, on_progress)


def _report(console: Console, plan: Plan, finished: Finished) -> None:
    for example in finished.examples:
        _show(console, example)
    manifest = finished.manifest
    console.print(_counts(manifest))
    console.print(manifest.limits)
    kinds = ("summaries", "rejects") if manifest.counts.rejected else ("summaries",)
    for kind in kinds:
        console.print(f"{kind + ':':<11}{plan.output.child(kind).child(f'run={plan.run_id}').uri}/*.parquet")
    console.print(f"manifest:  {plan.folder.uri}/manifest.json")


def _show(console: Console, example: Example) -> None:
    opening = " ".join(example.opening.split())
    shown = opening if len(opening) <= _OPENING_CHARS else opening[:_OPENING_CHARS] + " …"
    console.print(Text.assemble("\n", (example.id, "bold"), "  ", (shown, "dim")))
    console.print(f"  → {example.summary}")


def _counts(manifest: Manifest) -> str:
    counts = manifest.counts
    rejected = ", ".join(f"{reason} {rows:,}" for reason, rows in sorted(counts.rejected.items()))
    return (
        f"\nsummarized {counts.summarized:,} of {counts.read:,} documents in {manifest.seconds:.1f} s: "
        f"{counts.read / max(manifest.seconds, 1e-9):,.0f} documents/s with {manifest.actors} actors "
        f"(after {manifest.startup_s:.1f} s to start)\n"
        f"rejected {sum(counts.rejected.values()):,}{f' ({rejected})' if rejected else ''}; "
        f"{counts.truncated:,} sources were cut to what the model reads, "
        f"{counts.reached_length_limit:,} summaries reached the length limit"
    )


if __name__ == "__main__":
    exit_on_user_error("summarize", main)
