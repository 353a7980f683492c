"""Summarize every document of a Parquet store: ``python -m jobs.summarize --config configs/summarize.yaml``."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from pipeline.config import SummarizeConfig
from pipeline.errors import exit_on_user_error
from pipeline.inference.manifest import Example, Manifest
from pipeline.inference.run import Finished, Plan, Progress, execute, plan_run
from pipeline.options import load_config

_OPENING_CHARS = 220
_LINE_EVERY_S = 5.0


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(SummarizeConfig, "summarize", sys.argv[1:])
    console = Console(highlight=False, soft_wrap=True)
    plan = plan_run(config)
    console.print(
        f"run {plan.run_id}: {plan.store.rows:,} documents in {len(plan.store.files):,} files "
        f"({plan.store.bytes / 1e6:,.1f} MB) of {config.input.path}, with model {plan.model_fingerprint[:12]}"
    )
    if plan.is_finished():
        console.print(f"run {plan.run_id} is finished already: {plan.folder.uri}; set another --output.run_id to do it again")
        return 0
    _report(console, plan, _execute(console, plan))
    return 0


def _execute(console: Console, plan: Plan) -> Finished:
    """Run the plan under a progress bar, or with a line every few seconds where there is no terminal to draw it on."""
    bar = ProgressBar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    last_line = time.monotonic()
    with bar:
        task = bar.add_task("starting Ray and loading the model", total=plan.store.rows, rate="")

        def on_progress(progress: Progress) -> None:
            nonlocal last_line
            done = progress.counts.read
            rate = f"{done / max(progress.seconds, 1e-9):,.0f} documents/s"
            bar.update(task, completed=done, description="summarizing", rate=rate)
            if bar.disable and time.monotonic() - last_line >= _LINE_EVERY_S:
                last_line = time.monotonic()
                console.print(f"run {plan.run_id}: {done:,} of {plan.store.rows:,} documents, {rate}")

        if bar.disable:
            console.print(f"run {plan.run_id}: starting Ray and loading the model")
        return execute(plan, on_progress)


def _report(console: Console, plan: Plan, finished: Finished) -> None:
    for example in finished.examples:
        _show(console, example)
    manifest = finished.manifest
    console.print(_counts(manifest))
    kinds = ("summaries", "rejects") if manifest.counts.rejected else ("summaries",)
    for kind in kinds:
        console.print(f"{kind + ':':<11}{plan.output.child(kind).child(f'run={plan.run_id}').uri}/*.parquet")
    console.print(f"manifest:  {plan.folder.uri}/manifest.json")


def _show(console: Console, example: Example) -> None:
    opening = " ".join(example.opening.split())
    shown = opening if len(opening) <= _OPENING_CHARS else opening[:_OPENING_CHARS] + " …"
    console.print(f"\n[bold]{escape(example.id)}[/bold]  [dim]{escape(shown)}[/dim]")
    console.print(f"  → {example.summary}", markup=False)


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
