"""The model card: what a bundle was trained on, how, for how long, and how good it is, for people."""

from __future__ import annotations

from typing import Any

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.version import versions


def model_card(config: TrainConfig, config_yaml: str, pairs: int, best: dict[str, Any], last: dict[str, Any]) -> str:
    """Markdown for README.md.

    Args:
        config_yaml: the whole configuration. pairs: of the training data. best, last: records of the validation whose
            checkpoint the bundle holds, and of the training's last one.
    """
    training = {
        "training pairs": f"`{config.data.train}`: {pairs:,}",
        "development pairs": f"`{config.data.dev}`: {best['dev_rows']:,} used",
        "whole training": f"{last['step']:,} steps, {last['pairs_seen']:,} pairs seen, {_format_scores(last)}",
        "this checkpoint": f"the best by {config.training.best_by}: step {best['step']:,}, {_format_scores(best)}",
        "workers": f"{last['workers']} × {last['device']}, {last['precision']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    return f"""# {config.model.cell.upper()} encoder-decoder, {best["parameters"]:,} parameters

{describe_network(config.model)}.
Load it with `--model.path` of `jobs.summarize` and `jobs.evaluate`.

## Training

| | |
|---|---|
{_rows(training)}

## Validation

Hypotheses for the development pairs, with the options below; ROUGE F1 on words of any script, in percent.

| | loss (nat a token) | ROUGE-1 | ROUGE-2 | ROUGE-L | exact match |
|---|---|---|---|---|---|
{_rows({"this checkpoint": _figures(best), "the last one": _figures(last)})}

## Decoding defaults

{_decoding(config.decoding)}

## How to train it again

Save this as `train.yaml` and run `python -m jobs.train --config train.yaml`.

```yaml
{config_yaml}```
"""


def _rows(rows: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _format_scores(record: dict[str, Any]) -> str:
    return f"{record['epoch']:.2f} epochs, {record['minutes']:.1f} minutes"


def _figures(record: dict[str, Any]) -> str:
    percents = (f"{record[name]:.1f}" for name in ("rouge1", "rouge2", "rougeL", "exact_match"))
    return " | ".join([f"{record['dev_loss']:.3f}", *percents])


def describe_network(model: ModelConfig) -> str:
    """The network's shape, as a sentence without its end."""
    parts = [
        f"{model.layers} × {model.hidden_size} units",
        "bidirectional encoder" if model.bidirectional else "one-directional encoder",
        "no attention" if model.attention == "none" else f"{model.attention} attention",
    ]
    return ", ".join(parts + ["copying from the source"] * model.copy_source)


def _decoding(options: DecodingConfig) -> str:
    search = "Greedy search" if options.beam_size == 1 else f"Beam search with {options.beam_size} hypotheses"
    repeats = f"no {options.no_repeat_ngram} subwords twice" if options.no_repeat_ngram else "repeats are allowed"
    lengths = f"{options.min_target_tokens} to {options.max_target_tokens} subwords are written"
    return f"{search}. Sources are cut to {options.max_source_tokens} subwords; {lengths}; {repeats}."
