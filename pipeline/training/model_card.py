"""The model card: README.md of a bundle, with its data, training, validation figures and configuration."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.training.plan import Parent
from pipeline.version import versions


def model_card(config: TrainConfig, pairs: int, best: dict[str, Any], last: dict[str, Any], parent: Parent | None) -> str:
    """Return the Markdown of README.md.

    Args:
        pairs: number of training pairs.
        best: validation record of the checkpoint in the bundle.
        last: last validation record of the training.
        parent: bundle that the training started from, if any.
    """
    start = f"`{parent.path}`, fingerprint `{parent.fingerprint}`" if parent else "random weights"
    training = {
        "started from": start,
        "training pairs": f"`{config.data.train}`: {pairs:,}",
        "development pairs": f"`{config.data.dev}`: {best['dev_rows']:,} used",
        "whole training": f"{last['step']:,} steps, {last['pairs_seen']:,} pairs seen, {_format_duration(last)}",
        "this checkpoint": f"the best by {config.training.best_by}: step {best['step']:,}, {_format_duration(best)}",
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

Scores of hypotheses for the development pairs, decoded with the options below; ROUGE F1 on words of any script, in percent.

| | loss (nats per token) | ROUGE-1 | ROUGE-2 | ROUGE-L | exact match |
|---|---|---|---|---|---|
{_rows({"this checkpoint": _format_scores(best), "last checkpoint": _format_scores(last)})}

## Decoding defaults

{_describe_decoding(config.decoding)}

## How to reproduce

Save this as `train.yaml` and run `python -m jobs.train --config train.yaml`.

```yaml
{config_yaml(config)}```
"""


def config_yaml(config: TrainConfig) -> str:
    """Return the whole configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _rows(rows: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _format_duration(record: dict[str, Any]) -> str:
    return f"{record['epoch']:.2f} epochs, {record['minutes']:.1f} minutes"


def _format_scores(record: dict[str, Any]) -> str:
    percents = (f"{record[name]:.1f}" for name in ("rouge1", "rouge2", "rougeL", "exact_match"))
    return " | ".join([f"{record['dev_loss']:.3f}", *percents])


def describe_network(model: ModelConfig) -> str:
    """Describe the network's shape in one sentence, without the period."""
    encoder = f", {model.encoder_units} per direction of the encoder" if model.encoder_hidden_size else ""
    parts = [
        f"{model.layers} × {model.hidden_size} units{encoder}",
        "bidirectional encoder" if model.bidirectional else "one-directional encoder",
        "no attention" if model.attention == "none" else f"{model.attention} attention",
    ]
    styles = [f"styles {' and '.join(model.styles)}"] if model.styles else []
    return ", ".join(parts + ["copying from the source"] * model.copy_source + styles)


def _describe_decoding(options: DecodingConfig) -> str:
    search = "Greedy search" if options.beam_size == 1 else f"Beam search with {options.beam_size} hypotheses"
    repeats = f"no {options.no_repeat_ngram} subwords twice" if options.no_repeat_ngram else "repeats are allowed"
    lengths = f"{options.min_target_tokens} to {options.max_target_tokens} subwords are written"
    return f"{search}. Sources are cut to {options.max_source_tokens} subwords; {lengths}; {repeats}."
