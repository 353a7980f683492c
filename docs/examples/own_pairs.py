"""Fine-tune the shipped model on your own pairs and compare the two: python docs/examples/own_pairs.py FOLDER."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.config.types import SAMPLE

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)

# Stands for your pairs: abstracts, and their first words as the "summary" to learn. Use some hundred real ones.
texts = pq.read_table(SAMPLE / "documents/part-0.parquet")["text"].to_pylist()
with open(folder / "pairs.jsonl", "w") as file:
    for text in texts:
        file.write(json.dumps({"source": text, "target": " ".join(text.split()[:8])}) + "\n")


def run(job: str, *options: str) -> None:
    """Run a job and stop if it fails."""
    subprocess.run([sys.executable, "-m", f"jobs.{job}", *options], check=True)


run("prepare", "--input.train", f"{folder}/pairs.jsonl", "--input.test_share", "0.1", "--tokenizer.path", "sample",
    "--output.path", f"{folder}/prepared")  # fmt: skip
run("train", "--model.init_from", "sample", "--data.train", f"{folder}/prepared/train", "--data.dev", f"{folder}/prepared/dev",
    "--training.max_steps", "20", "--output.path", f"{folder}/trained")  # fmt: skip
run("evaluate", "--model.path", f"{folder}/trained/bundle", "--compare.path", "sample",
    "--input.path", f"{folder}/prepared/test", "--output.path", f"{folder}/evaluation.json")  # fmt: skip
