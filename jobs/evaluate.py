"""Score a model, another one and two baselines on pairs: ``python -m jobs.evaluate --model.path trained/bundle``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.console import new_console, progress
from pipeline.bundles import read_bundle
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.loader import load_config
from pipeline.config.model import DecodingConfig
from pipeline.data.arrow import to_texts
from pipeline.data.pairs import PairSet, drop_incomplete, open_pairs, pair_styles, reference_texts
from pipeline.errors import EXIT_OK, UserError, exit_on_user_error
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.evaluate import DecodedBatch, EvaluationScores, Evaluator, Summarizer
from pipeline.evaluation.metrics import ScoreInterval, tokenizer_warnings
from pipeline.io.atomic import atomic_file
from pipeline.io.location import relative_to_cwd
from pipeline.version import versions

_WINDOW_ROWS = 512
_SHOWN_CHARS = 150
_METRIC_NAMES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "exact_match": "exact match, %",
    "empty_percent": "empty, %",
    "loop_percent": "with a loop, %",
    "mean_words": "words",
}

_MEAN_NAMES = {f"mean_rouge{n}": f"mean ROUGE-{n}" for n in ("1", "2", "L")}

WriteHypotheses = Callable[[pa.Table, DecodedBatch], None]


def main() -> int:
    """Run the job and return its exit status."""
    config = load_config(EvaluateConfig, "evaluate", sys.argv[1:])
    console = new_console()
    pairs = open_pairs(config.input.path, "--input.path")
    rows = min(pairs.rows, config.input.max_rows or pairs.rows)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, bundle = read_bundle(config.model.path, device)
    decoding = config.decoding.applied_to(bundle.decoding, bundle.model.config)
    model = Summarizer(bundle, decoding, config.resources.precision)
    other = _read_other(config, device)
    evaluator = Evaluator(model, config.metrics, other.summarizer if other else None)
    against = f", compared with model {other.fingerprint[:12]}" if other else ""
    console.print(f"{rows:,} pairs of {config.input.path}, with model {bundle.fingerprint[:12]} on {device}{against}")
    with contextlib.ExitStack() as outputs:
        report = outputs.enter_context(atomic_file(config.output.path, "--output.path"))
        write = outputs.enter_context(_hypotheses_file(config.output.hypotheses)) if config.output.hypotheses else None
        skipped = _add_pairs(console, config, evaluator, pairs, write)
        if skipped == rows:
            raise UserError(f"each row of {config.input.path} has a null source or target; set --input.path to pairs")
        scores = evaluator.scores()
        content = {
            "model": {"path": relative_to_cwd(config.model.path), "fingerprint": bundle.fingerprint},
            "compare": _describe_other(config, other),
            "input": {"path": config.input.path, "rows": rows, "skipped_null_rows": skipped},
            "decoding": decoding.model_dump(),
            "metrics": config.metrics.model_dump(),
            **scores.model_dump(),
            "device": device,
            "precision": config.resources.precision,
            "versions": versions(),
        }
        report.write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    _print_scores(console, config, scores, skipped)
    return EXIT_OK


class _OtherModel(NamedTuple):
    """The model of ``compare.path``."""

    fingerprint: str
    decoding: DecodingConfig
    summarizer: Summarizer


def _read_other(config: EvaluateConfig, device: str) -> _OtherModel | None:
    """Return the model of ``compare.path``, which decodes with its own defaults and the same overrides.

    A model without styles ignores ``decoding.style``.
    """
    if config.compare.path is None:
        return None
    _, bundle = read_bundle(config.compare.path, device, "--compare.path")
    overrides = config.decoding if bundle.model.config.styles else config.decoding.model_copy(update={"style": None})
    decoding = overrides.applied_to(bundle.decoding, bundle.model.config, "--compare.path")
    return _OtherModel(bundle.fingerprint, decoding, Summarizer(bundle, decoding, config.resources.precision))


def _describe_other(config: EvaluateConfig, other: _OtherModel | None) -> dict[str, Any] | None:
    if other is None or config.compare.path is None:
        return None
    path = relative_to_cwd(config.compare.path)
    return {"path": path, "fingerprint": other.fingerprint, "decoding": other.decoding.model_dump()}


def _add_pairs(
    console: Console, config: EvaluateConfig, evaluator: Evaluator, pairs: PairSet, write: WriteHypotheses | None
) -> int:
    """Decode and score all pairs, and return the number of rows that were skipped."""
    max_rows, metrics = config.input.max_rows, config.metrics
    processed = skipped = 0
    with progress(console, "decoding", min(pairs.rows, max_rows or pairs.rows)) as show:
        for window in pairs.windows(_WINDOW_ROWS, max_rows):
            complete = drop_incomplete(window)
            references = reference_texts(complete)
            if not processed:
                texts = [text for row in references for text in row]
                for warning in tokenizer_warnings(texts, metrics.rouge_tokenizer, metrics.bleu_tokenizer):
                    console.print(f"warning: {warning}", style="yellow")
            styles = None if config.decoding.style else pair_styles(complete)
            decoded = evaluator.add([str(text) for text in to_texts(complete["source"])], references, styles)
            if write:
                write(complete, decoded)
            processed += len(window)
            skipped += len(window) - len(complete)
            show("decoding", processed)
    return skipped


@contextlib.contextmanager
def _hypotheses_file(uri: str) -> Iterator[WriteHypotheses]:
    """Open a Parquet file; yield a function that adds pairs and their hypotheses."""
    with atomic_file(uri, "--output.hypotheses") as file, contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(pairs: pa.Table, decoded: DecodedBatch) -> None:
            nonlocal writer
            columns: dict[str, Any] = {
                "id": pairs["id"],
                "source": pairs["source"],
                "reference": pairs["target"],
                "hypothesis": pa.array(decoded.texts, pa.string()),
                "score": pa.array(decoded.scores, pa.float32()),
                "finish_reason": pc.if_else(pa.array(decoded.finished), "eos", "length"),
            }
            table = pa.table(columns)
            if writer is None:  # the first table has the type of the ids
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)

        yield write


def _print_scores(console: Console, config: EvaluateConfig, scores: EvaluationScores, skipped: int) -> None:
    intervals = ", with 95 % intervals" if config.metrics.bootstrap_samples else ""
    table = Table("", *scores.systems, title=f"{scores.rows:,} pairs{intervals}")
    several = scores.references > scores.rows
    for attribute, name in (_METRIC_NAMES | (_MEAN_NAMES if several else {})).items():
        table.add_row(name, *(_cell(getattr(system, attribute)) for system in scores.systems.values()))
    console.print(table)
    if several:
        console.print(f"{scores.references / scores.rows:.1f} references a source: ROUGE takes the best one")
    if scores.comparison:
        _print_comparison(console, scores.comparison)
    console.print(
        f"the length limit truncated {scores.length_limit_percent:.1f} % of the model's summaries; "
        f"decoded {scores.documents_per_s:,.0f} documents/s"
    )
    if skipped:
        console.print(f"skipped {skipped:,} rows with a null source or target")
    console.print(f"scores:     {config.output.path}")
    if config.output.hypotheses:
        console.print(f"hypotheses: {config.output.hypotheses}")


def _print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the verdict, and the rows on which the models differ most."""
    for title, rows in (("gains", comparison.better_rows), ("losses", comparison.worse_rows)):
        for row in rows:
            console.print(f"\n{title} {abs(row.difference):.1f} ROUGE-L: {row.source[:_SHOWN_CHARS]}", style="dim")
            console.print(f"  reference  {row.reference}\n  model      {row.model}\n  other      {row.other}")
    difference = comparison.difference
    verdicts = {
        "better": "the model is better than the other",
        "worse": "the model is worse than the other",
        "no difference": "no difference is shown",
    }
    console.print(
        f"\n{verdicts[comparison.verdict]}: ROUGE-L {difference.value:+.2f} ({difference.low:+.2f} to {difference.high:+.2f}), "
        f"better in {comparison.better_share:.1%} of the resamples",
        style="bold",
    )


def _cell(score: ScoreInterval) -> Text:
    interval = "" if score.low is None else f" {score.low:.1f} to {score.high:.1f}"
    return Text.assemble(f"{score.value:.1f}", (interval, "dim"))


if __name__ == "__main__":
    exit_on_user_error("evaluate", main)
