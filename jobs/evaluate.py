"""Score a model on pairs, beside two baselines: ``python -m jobs.evaluate --config configs/evaluate.yaml``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

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
from pipeline.data.arrow import to_texts
from pipeline.data.pairs import drop_incomplete, open_pairs
from pipeline.errors import UserError, exit_on_user_error
from pipeline.evaluation.evaluate import DecodedBatch, EvaluationScores, Evaluator
from pipeline.evaluation.metrics import ScoreInterval, tokenizer_warnings
from pipeline.io.atomic import atomic_file
from pipeline.io.location import relative_to_cwd
from pipeline.version import versions

_WINDOW_ROWS = 512
_SHOWN = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "exact_match": "exact match, %",
    "empty_percent": "empty, %",
    "loop_percent": "with a loop, %",
    "mean_words": "words",
}


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(EvaluateConfig, "evaluate", sys.argv[1:])
    console = new_console()
    store = open_pairs(config.input.path, "--input.path")
    rows, windows = min(store.rows, config.input.max_rows or store.rows), store.windows(_WINDOW_ROWS, config.input.max_rows)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, bundle = read_bundle(config.model.path, device)
    decoding = config.decoding.applied_to(bundle.decoding, bundle.model.config)
    evaluation = Evaluator(bundle, decoding, config.metrics, config.resources.precision)
    console.print(f"{rows:,} pairs of {config.input.path}, with model {bundle.fingerprint[:12]} on {device}")
    with contextlib.ExitStack() as outputs:
        report = outputs.enter_context(atomic_file(config.output.path, "--output.path"))
        write = outputs.enter_context(_hypotheses(config.output.hypotheses)) if config.output.hypotheses else None
        skipped = _evaluate(console, config, evaluation, rows, windows, write)
        if skipped == rows:
            raise UserError(f"each row of {config.input.path} has a null source or target; set --input.path to pairs")
        figures = evaluation.figures()
        content = {
            "model": {"path": relative_to_cwd(config.model.path), "fingerprint": bundle.fingerprint},
            "input": {"path": config.input.path, "rows": rows, "skipped_null_rows": skipped},
            "decoding": decoding.model_dump(),
            "metrics": config.metrics.model_dump(),
            **figures.model_dump(),
            "device": device,
            "precision": config.resources.precision,
            "versions": versions(),
        }
        report.write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
    _show(console, config, figures, skipped)
    return 0


def _evaluate(
    console: Console,
    config: EvaluateConfig,
    evaluation: Evaluator,
    rows: int,
    windows: Iterator[pa.Table],
    write: Callable[[pa.Table, DecodedBatch], None] | None,
) -> int:
    """Feed the windows to the evaluation; how many rows were skipped."""
    seen = skipped = 0
    with progress(console, "decoding", rows) as show:
        for window in windows:
            pairs = drop_incomplete(window)
            references = [str(text) for text in to_texts(pairs["target"])]
            if not seen:
                for warning in tokenizer_warnings(references, config.metrics.rouge_tokenizer, config.metrics.bleu_tokenizer):
                    console.print(f"warning: {warning}", style="yellow")
            decoded = evaluation.add([str(text) for text in to_texts(pairs["source"])], references)
            if write:
                write(pairs, decoded)
            seen += len(window)
            skipped += len(window) - len(pairs)
            show("decoding", seen)
    return skipped


@contextlib.contextmanager
def _hypotheses(uri: str) -> Iterator[Callable[[pa.Table, DecodedBatch], None]]:
    """A function that adds a window's pairs and hypotheses to a Parquet file."""
    with atomic_file(uri, "--output.hypotheses") as file, contextlib.ExitStack() as closing:
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
            if writer is None:  # the type of the ids is the input's
                writer = closing.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
            writer.write_table(table)

        yield write


def _show(console: Console, config: EvaluateConfig, figures: EvaluationScores, skipped: int) -> None:
    intervals = ", with 95 % intervals" if config.metrics.bootstrap_samples else ""
    table = Table("", *figures.systems, title=f"{figures.rows:,} pairs{intervals}")
    for name, shown in _SHOWN.items():
        table.add_row(shown, *(_cell(getattr(scores, name)) for scores in figures.systems.values()))
    console.print(table)
    console.print(
        f"{figures.length_limit_percent:.1f} % of the model's hypotheses were cut at the length limit; "
        f"decoded {figures.documents_per_s:,.0f} documents/s"
    )
    if skipped:
        console.print(f"skipped {skipped:,} rows with a null source or target")
    console.print(f"figures:    {config.output.path}")
    if config.output.hypotheses:
        console.print(f"hypotheses: {config.output.hypotheses}")


def _cell(estimate: ScoreInterval) -> Text:
    interval = "" if estimate.low is None else f" {estimate.low:.1f} to {estimate.high:.1f}"
    return Text.assemble(f"{estimate.value:.1f}", (interval, "dim"))


if __name__ == "__main__":
    exit_on_user_error("evaluate", main)
