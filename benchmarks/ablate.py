"""What each part of the network and of its training is worth: trainings that differ in one option, on the same steps.

``python benchmarks/ablate.py --config configs/train.arxiv.yaml --json benchmarks/ablation_arxiv.json``, after the pairs were
prepared with configs/prepare.arxiv.yaml. Steps, not minutes, end each training, so that a busy machine does not matter; one of
few steps says little of what keeps a long one from learning by heart.
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
    """Train and evaluate each, and print and write the figures; what is written already is not done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config",
        type=lambda name: Path(name).absolute(),
        required=True,
        help="of a training, whose steps and workers do not count",
    )
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--work", type=Path, default=ROOT / "prepared/ablation", help="for what is trained")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    given = parser.parse_args()
    figures: dict[str, Any] = json.loads(given.json.read_text()) if given.json.exists() else {}
    for number, (name, options) in enumerate(VARIANTS.items()):
        if name not in figures or figures[name]["steps"] != given.steps:
            figures[name] = measure(given, given.work / str(number), options)
            given.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        print(
            f"{name:32}" + "  ".join(f"beam {beam}: {in_words(figures[name][f'beam {beam}'])}" for beam in _BEAMS), flush=True
        )


def measure(given: argparse.Namespace, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train anew, and evaluate what came of it on all development pairs."""
    shutil.rmtree(output, ignore_errors=True)
    bounds = {"epochs": "null", "max_minutes": "null", "max_steps": given.steps, "validate_minutes": 1000, "validate_rows": 100}
    training = {f"training.{name}": value for name, value in bounds.items()}
    scaling = {"scaling.num_workers": 1, "scaling.threads": 1, "output.path": output}
    job("train", "--config", given.config, *words({**training, **scaling, **options}))
    records = [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]
    speeds = sorted(record["tokens_per_s"] for record in records if record["kind"] == "step")
    figures: dict[str, Any] = {
        "options": options,
        "steps": given.steps,
        "parameters": records[-1]["parameters"],
        "epochs": records[-1]["epoch"],
        "tokens_per_s": speeds[len(speeds) // 2],
    }
    dev = yaml.safe_load(given.config.read_text())["data"]["dev"]
    for beam in _BEAMS:
        decoding = {"decoding.beam_size": beam, "output.path": output / "evaluation.json"}
        job("evaluate", *words({"model.path": output / "bundle", "input.path": dev, **decoding}))
        systems = json.loads((output / "evaluation.json").read_text())["systems"]
        figures[f"beam {beam}"] = {name: {rouge: system[rouge] for rouge in _ROUGE} for name, system in systems.items()}
    return figures


def words(options: dict[str, Any]) -> list[str]:
    """Options as a command line has them."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def job(name: str, *options: str) -> None:
    """Run one; where it fails, its last lines are the end."""
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", *options], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-1000:]}{done.stderr[-2000:]}\njobs.{name} failed")


def in_words(evaluation: dict[str, Any]) -> str:
    """ROUGE-1/2/L."""
    return " / ".join(f"{evaluation['model'][name]['value']:.1f}" for name in _ROUGE)


if __name__ == "__main__":
    main()
