"""Nightshift beside OpenNMT-py 3.5.1: the same LSTM with attention, pairs, subwords, steps and batches, on the same CPU thread.

``python benchmarks/peers/opennmt.py --json benchmarks/peers/opennmt.json`` does it all, after ``python -m jobs.prepare --config
configs/prepare.tatoeba.yaml``: it makes an environment of its own for OpenNMT-py, trains both, and translates the same test
sentences greedily with both. OpenNMT-py is trained twice: as the network that Nightshift trains, and with input feeding,
which is its default. What is compared is a training's own report of its speed, start-up and validation apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import pyarrow.parquet as pq
import sacrebleu
import torch
import yaml
from sentencepiece import SentencePieceProcessor

PEER = ["OpenNMT-py==3.5.1", "numpy<2", "setuptools<80"]
"""With what it does not name, but does not run without."""
ROOT = Path(__file__).parents[2]
LAYERS, DROPOUT, RATE, BETA2, CLIP = 1, 0.2, 1e-3, 0.98, 2.0
ATTENTIONS = {"general": "general", "additive": "mlp"}
"""By our name, and by OpenNMT-py's. After additive attention there is no tanh in OpenNMT-py, and one here."""
_LONGEST = 48
_SPEED = re.compile(r"Step (\d+)/.*; +(\d+)/ *(\d+) tok/s")
_REPORT_STEPS = 20


def main() -> None:
    """Run both, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=ROOT / "prepared/tatoeba", help="what jobs.prepare wrote")
    parser.add_argument("--work", type=Path, default=ROOT / "prepared/peers", help="for the environment and what is trained")
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="padded source or target tokens of a batch")
    parser.add_argument("--units", type=int, default=256, help="of each LSTM, and of the embeddings")
    parser.add_argument("--attention", choices=ATTENTIONS, default="general", help="of the decoder")
    parser.add_argument("--test-rows", type=int, default=1000, help="test sentences to translate")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    python = peer_python(given.work / "venv")
    write_texts(given.pairs, given.work, given.test_rows)
    runs = {
        "OpenNMT-py": opennmt(given, python, input_feed=False),
        "OpenNMT-py, input feeding": opennmt(given, python, input_feed=True),
        "Nightshift, float32": nightshift(given, "float32"),
        "Nightshift, as it comes": nightshift(given, "auto"),
    }
    figures = {
        "benchmark": "peers/opennmt",
        "cpu": f"{torch.cpu.get_capabilities()['cpu_name']}, 1 thread",
        "steps": given.steps,
        "units": given.units,
        "attention": given.attention,
        "test_rows": given.test_rows,
        "runs": runs,
    }
    given.json.write_text(json.dumps(figures, indent=2).replace(f"{ROOT}/", "") + "\n")
    for name, run in runs.items():
        ratio = run["tokens_per_s"] / runs["OpenNMT-py"]["tokens_per_s"]
        print(f"{name:28} {run['tokens_per_s']:8,.0f} tokens/s {ratio:6.2f}x {run['bleu']:6.1f} BLEU")


def peer_python(folder: Path) -> Path:
    """The Python of an environment that OpenNMT-py is in."""
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        (folder / "installed").touch()
    return python


def write_texts(pairs: Path, work: Path, test_rows: int) -> None:
    """Source and target as lines of subwords, for each split."""
    tokenizer = SentencePieceProcessor(model_file=str(pairs / "tokenizer.model"))
    for split, rows in (("train", None), ("dev", 500), ("test", test_rows)):
        table = pq.read_table(pairs / split).slice(0, rows)
        for side in ("source", "target"):
            lines = (tokenizer.encode(text, out_type=str)[:_LONGEST] for text in table[side].to_pylist())
            (work / f"{split}.{side}").write_text("".join(" ".join(line) + "\n" for line in lines))
    (work / "references").write_text("".join(line + "\n" for line in table["target"].to_pylist()))


def opennmt(given: argparse.Namespace, python: Path, input_feed: bool) -> dict[str, Any]:
    """Train and translate with OpenNMT-py."""
    work = given.work / ("opennmt_feeding" if input_feed else "opennmt")
    work.mkdir(exist_ok=True)
    vocabulary, model = str(work / "vocabulary"), str(work / "model")
    corpus = {
        name: {f"path_{end}": str(given.work / f"{split}.{side}") for end, side in (("src", "source"), ("tgt", "target"))}
        for name, split in (("pairs", "train"), ("valid", "dev"))
    }
    options = {
        "data": corpus, "src_vocab": vocabulary, "tgt_vocab": vocabulary, "share_vocab": True, "save_data": str(work),
        "overwrite": True, "save_model": model, "encoder_type": "rnn", "decoder_type": "rnn",
        "rnn_type": "LSTM", "hidden_size": given.units, "word_vec_size": given.units, "layers": LAYERS, "dropout": [DROPOUT],
        "global_attention": ATTENTIONS[given.attention], "input_feed": int(input_feed), "share_embeddings": True,
        "share_decoder_embeddings": True, "optim": "adam", "learning_rate": RATE, "adam_beta2": BETA2, "max_grad_norm": CLIP,
        "batch_type": "tokens", "batch_size": given.batch_tokens, "normalization": "tokens", "bucket_size": 32768,
        "train_steps": given.steps, "valid_steps": 10 * given.steps, "save_checkpoint_steps": given.steps,
        "report_every": _REPORT_STEPS, "num_workers": 0, "seed": 1,
    }  # fmt: skip
    (work / "train.yaml").write_text(yaml.safe_dump(options))
    single = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    module = "onmt.bin."  # not the commands of these: the first line of each has the path that its environment was made at
    run([python, "-m", f"{module}build_vocab", "-config", work / "train.yaml", "-n_sample", -1], single)  # of all pairs
    log = run([python, "-m", f"{module}train", "-config", work / "train.yaml"], single)
    hypotheses = work / "hypotheses"
    run([
        python, "-m", f"{module}translate", "-model", f"{model}_step_{given.steps}.pt", "-src", given.work / "test.source",
        "-output", hypotheses, "-beam_size", 1, "-max_length", _LONGEST, "-batch_size", 64,
    ], single)  # fmt: skip
    tokenizer = SentencePieceProcessor(model_file=str(given.pairs / "tokenizer.model"))
    texts = [tokenizer.decode(line.split()) for line in hypotheses.read_text().rstrip("\n").split("\n")]
    # Each report is of as many steps since the last, and so of about as many tokens; the first has what warms up.
    speeds = [int(source) + int(target) for step, source, target in _SPEED.findall(log) if int(step) > _REPORT_STEPS]
    return {"tokens_per_s": harmonic_mean(speeds), "bleu": bleu(given, texts), "options": options}


def nightshift(given: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Train and translate with Nightshift."""
    work = given.work / f"nightshift_{precision}"
    options = {
        "data.train": given.pairs / "train", "data.dev": given.pairs / "dev", "data.tokenizer": given.pairs / "tokenizer.model",
        "data.max_source_tokens": _LONGEST, "data.max_target_tokens": _LONGEST, "data.window_rows": 32768,
        "model.embedding_size": given.units, "model.hidden_size": given.units, "model.layers": LAYERS,
        "model.bidirectional": "false", "model.attention": given.attention, "model.copy": "false",
        "model.dropout": DROPOUT, "model.tied_embeddings": "true",
        "training.epochs": "null", "training.max_steps": given.steps, "training.token_budget": 2 * given.batch_tokens,
        "training.learning_rate": RATE, "training.warmup_steps": 0, "training.final_rate_share": 1.0,
        "training.clip_norm": CLIP, "training.validate_minutes": 1000, "training.validate_rows": 500,
        "training.precision": precision, "decoding.no_repeat_ngram": 0, "decoding.max_target_tokens": _LONGEST,
        "scaling.num_workers": 1, "scaling.threads": 1, "output.path": work,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    subprocess.run(["rm", "-rf", work], check=True)
    run([sys.executable, "-m", "jobs.train", *words], dict(os.environ))
    run([
        sys.executable, "-m", "jobs.evaluate", "--model.path", work / "bundle", "--input.path", given.pairs / "test",
        "--input.max_rows", given.test_rows, "--output.path", work / "figures.json",
        "--output.hypotheses", work / "found.parquet",
    ], dict(os.environ))  # fmt: skip
    records = [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"][1:]
    texts = pq.read_table(work / "found.parquet")["hypothesis"].to_pylist()
    speed = sum(step["tokens_per_s"] for step in steps) / len(steps)
    return {
        "tokens_per_s": speed,
        "bleu": bleu(given, texts),
        "pairs_per_step": records[-1]["pairs_seen"] / given.steps,
        "options": {name: str(value) for name, value in options.items()},
    }


def bleu(given: argparse.Namespace, hypotheses: list[str]) -> float:
    """Of the test sentences."""
    references = (given.work / "references").read_text().rstrip("\n").split("\n")
    return float(sacrebleu.corpus_bleu(hypotheses, [references]).score)


def run(command: list[Any], environment: dict[str, str]) -> str:
    """What a command prints; where it fails, its last lines and ours are the end."""
    print("$", *command, flush=True)
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-3000:]}\n{command[0]} failed")
    return done.stdout


if __name__ == "__main__":
    main()
