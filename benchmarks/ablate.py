"""Ablation of the network and its training: trainings of the same number of steps that differ in one option.

Prepare the pairs with configs/prepare.arxiv.yaml, then run
``python benchmarks/ablate.py --config configs/train.arxiv.yaml --json benchmarks/ablation_arxiv.json``. Each training ends
after a number of steps, not minutes, so other work on the machine does not change the result. Short trainings say little about
options that prevent overfitting in long ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
NO_ATTENTION = {"model.attention": "none", "model.copy": "false"}
ATTENTION = {"model.copy": "false"}
COPY: dict[str, Any] = {}
VARIANTS: dict[str, dict[str, Any]] = {
    "no attention": NO_ATTENTION,
    "attention": ATTENTION,
    "attention, copying": COPY,
    "… and coverage 0.5": {"training.coverage": 0.5},
    "… and label smoothing 0.1": {"training.label_smoothing": 0.1},
    "… and averaged weights, 0.999": {"training.ema_decay": 0.999},
    "… and variational dropout": {"model.variational_dropout": "true"},
    "… and recurrent dropout 0.2": {"model.recurrent_dropout": 0.2},
}
_BEAMS, _ROUGE = (1, 5), ("rouge1", "rouge2", "rougeL")


def main() -> None:
    """Train and evaluate each variant; print the figures and write them. Variants that the file already has are skipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", type=lambda name: Path(name).absolute(), required=True, help="a training; its steps and workers are ignored"
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps of each training")
    parser.add_argument("--work", type=Path, default=ROOT / "prepared/ablation", help="folder for the trained models")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    figures: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    for number, (name, options) in enumerate(VARIANTS.items()):
        if name not in figures or figures[name]["steps"] != args.steps:
            figures[name] = measure(args, args.work / str(number), options)
            args.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        scores = [f"beam {beam}: {format_rouge(figures[name][f'beam {beam}'])}" for beam in _BEAMS]
        print(f"{name:32}" + "  ".join(scores), flush=True)


def measure(args: argparse.Namespace, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train from scratch, and evaluate the model on all development pairs."""
    shutil.rmtree(output, ignore_errors=True)
    bounds = {"epochs": "null", "max_minutes": "null", "max_steps": args.steps, "validate_minutes": 1000, "validate_rows": 100}
    training = {f"training.{name}": value for name, value in bounds.items()}
    scaling = {"scaling.num_workers": 1, "scaling.threads": 1, "output.path": output}
    run_job("train", "--config", args.config, *as_arguments({**training, **scaling, **options}))
    records = [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]
    speeds = sorted(record["tokens_per_s"] for record in records if record["kind"] == "step")
    figures: dict[str, Any] = {
        "options": options,
        "steps": args.steps,
        "parameters": records[-1]["parameters"],
        "epochs": records[-1]["epoch"],
        "tokens_per_s": speeds[len(speeds) // 2],
    }
    dev = yaml.safe_load(args.config.read_text())["data"]["dev"]
    for beam in _BEAMS:
        decoding = {"decoding.beam_size": beam, "output.path": output / "evaluation.json"}
        run_job("evaluate", *as_arguments({"model.path": output / "bundle", "input.path": dev, **decoding}))
        systems = json.loads((output / "evaluation.json").read_text())["systems"]
        figures[f"beam {beam}"] = {name: {rouge: system[rouge] for rouge in _ROUGE} for name, system in systems.items()}
    return figures


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Return options as command-line arguments."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_job(name: str, *options: str) -> None:
    """Run a job; if it fails, print its last lines and exit."""
    job = subprocess.run([sys.executable, "-m", f"jobs.{name}", *options], cwd=ROOT, text=True, capture_output=True)
    if job.returncode:
        sys.exit(f"{job.stdout[-1000:]}{job.stderr[-2000:]}\njobs.{name} failed")


def format_rouge(evaluation: dict[str, Any]) -> str:
    """Format ROUGE-1/2/L of the model."""
    return " / ".join(f"{evaluation['model'][name]['value']:.1f}" for name in _ROUGE)


if __name__ == "__main__":
    main()
