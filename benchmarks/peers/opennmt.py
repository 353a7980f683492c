"""Nightshift compared with OpenNMT-py 3.5.1: the same LSTM with attention, pairs, tokens, steps and batches, on one CPU thread.

Run ``python -m jobs.prepare --config configs/prepare.tatoeba.yaml``, then
``python benchmarks/peers/opennmt.py --json benchmarks/peers/opennmt.json``. The script installs OpenNMT-py in an environment of
its own, trains with both, and translates the same test sentences greedily with both. It trains OpenNMT-py twice: with the
network that Nightshift trains, and with input feeding, its default. Speeds are those that the trainings report, without
start-up and validation.
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
"""Includes packages that it needs but does not declare."""
ROOT = Path(__file__).parents[2]
LAYERS, DROPOUT, RATE, BETA2, CLIP = 1, 0.2, 1e-3, 0.98, 2.0
ATTENTIONS = {"general": "general", "additive": "mlp"}
"""Names in Nightshift and in OpenNMT-py. Only Nightshift applies tanh after additive attention."""

_MAX_TOKENS = 48
_SPEED = re.compile(r"Step (\d+)/.*; +(\d+)/ *(\d+) tok/s")
_REPORT_STEPS = 20


def main() -> None:
    """Run both; print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=ROOT / "prepared/tatoeba", help="output of jobs.prepare")
    parser.add_argument("--work", type=Path, default=ROOT / "prepared/peers", help="folder for the environment and the models")
    parser.add_argument("--steps", type=int, default=2000, help="steps of each training")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="padded source or target tokens per batch")
    parser.add_argument("--units", type=int, default=256, help="size of the LSTM layers and of the embeddings")
    parser.add_argument("--attention", choices=ATTENTIONS, default="general", help="attention of the decoder")
    parser.add_argument("--test-rows", type=int, default=1000, help="number of test sentences to translate")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    python = peer_python(args.work / "venv")
    write_texts(args.pairs, args.work, args.test_rows)
    runs = {
        "OpenNMT-py": opennmt(args, python, input_feed=False),
        "OpenNMT-py, input feeding": opennmt(args, python, input_feed=True),
        "Nightshift, float32": nightshift(args, "float32"),
        "Nightshift, as it comes": nightshift(args, "auto"),
    }
    figures = {
        "benchmark": "peers/opennmt",
        "cpu": f"{torch.cpu.get_capabilities()['cpu_name']}, 1 thread",
        "steps": args.steps,
        "units": args.units,
        "attention": args.attention,
        "test_rows": args.test_rows,
        "runs": runs,
    }
    args.json.write_text(json.dumps(figures, indent=2).replace(f"{ROOT}/", "") + "\n")
    for name, run in runs.items():
        ratio = run["tokens_per_s"] / runs["OpenNMT-py"]["tokens_per_s"]
        print(f"{name:28} {run['tokens_per_s']:8,.0f} tokens/s {ratio:6.2f}x {run['bleu']:6.1f} BLEU")


def peer_python(folder: Path) -> Path:
    """Return the Python of an environment with OpenNMT-py, which is installed at the first call."""
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        (folder / "installed").touch()
    return python


def write_texts(pairs: Path, work: Path, test_rows: int) -> None:
    """Write the sources and targets of each split as lines of tokens, and the references of the test split."""
    tokenizer = SentencePieceProcessor(model_file=str(pairs / "tokenizer.model"))
    for split, rows in (("train", None), ("dev", 500), ("test", test_rows)):
        table = pq.read_table(pairs / split).slice(0, rows)
        for side in ("source", "target"):
            lines = (tokenizer.encode(text, out_type=str)[:_MAX_TOKENS] for text in table[side].to_pylist())
            (work / f"{split}.{side}").write_text("".join(" ".join(line) + "\n" for line in lines))
    (work / "references").write_text("".join(line + "\n" for line in table["target"].to_pylist()))


def opennmt(args: argparse.Namespace, python: Path, input_feed: bool) -> dict[str, Any]:
    """Train and translate with OpenNMT-py."""
    work = args.work / ("opennmt_feeding" if input_feed else "opennmt")
    work.mkdir(exist_ok=True)
    vocabulary, model = str(work / "vocabulary"), str(work / "model")
    corpus = {
        name: {f"path_{end}": str(args.work / f"{split}.{side}") for end, side in (("src", "source"), ("tgt", "target"))}
        for name, split in (("pairs", "train"), ("valid", "dev"))
    }
    options = {
        "data": corpus, "src_vocab": vocabulary, "tgt_vocab": vocabulary, "share_vocab": True, "save_data": str(work),
        "overwrite": True, "save_model": model, "encoder_type": "rnn", "decoder_type": "rnn",
        "rnn_type": "LSTM", "hidden_size": args.units, "word_vec_size": args.units, "layers": LAYERS, "dropout": [DROPOUT],
        "global_attention": ATTENTIONS[args.attention], "input_feed": int(input_feed), "share_embeddings": True,
        "share_decoder_embeddings": True, "optim": "adam", "learning_rate": RATE, "adam_beta2": BETA2, "max_grad_norm": CLIP,
        "batch_type": "tokens", "batch_size": args.batch_tokens, "normalization": "tokens", "bucket_size": 32768,
        "train_steps": args.steps, "valid_steps": 10 * args.steps, "save_checkpoint_steps": args.steps,
        "report_every": _REPORT_STEPS, "num_workers": 0, "seed": 1,
    }  # fmt: skip
    (work / "train.yaml").write_text(yaml.safe_dump(options))
    single = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    module = "onmt.bin."  # its commands contain the path of the environment, and break if that is moved
    run([python, "-m", f"{module}build_vocab", "-config", work / "train.yaml", "-n_sample", -1], single)  # -1: all pairs
    log = run([python, "-m", f"{module}train", "-config", work / "train.yaml"], single)
    hypotheses = work / "hypotheses"
    run([
        python, "-m", f"{module}translate", "-model", f"{model}_step_{args.steps}.pt", "-src", args.work / "test.source",
        "-output", hypotheses, "-beam_size", 1, "-max_length", _MAX_TOKENS, "-batch_size", 64,
    ], single)  # fmt: skip
    tokenizer = SentencePieceProcessor(model_file=str(args.pairs / "tokenizer.model"))
    texts = [tokenizer.decode(line.split()) for line in hypotheses.read_text().rstrip("\n").split("\n")]
    # Reports cover equally many steps, so about equally many tokens; the first one includes the warm-up.
    speeds = [int(source) + int(target) for step, source, target in _SPEED.findall(log) if int(step) > _REPORT_STEPS]
    return {"tokens_per_s": harmonic_mean(speeds), "bleu": bleu(args, texts), "options": options}


def nightshift(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Train and translate with Nightshift."""
    work = args.work / f"nightshift_{precision}"
    options = {
        "data.train": args.pairs / "train", "data.dev": args.pairs / "dev", "data.tokenizer": args.pairs / "tokenizer.model",
        "data.max_source_tokens": _MAX_TOKENS, "data.max_target_tokens": _MAX_TOKENS, "data.window_rows": 32768,
        "model.embedding_size": args.units, "model.hidden_size": args.units, "model.layers": LAYERS,
        "model.bidirectional": "false", "model.attention": args.attention, "model.copy": "false",
        "model.dropout": DROPOUT, "model.tied_embeddings": "true",
        "training.epochs": "null", "training.max_steps": args.steps, "training.token_budget": 2 * args.batch_tokens,
        "training.learning_rate": RATE, "training.warmup_steps": 0, "training.final_rate_share": 1.0,
        "training.clip_norm": CLIP, "training.validate_minutes": 1000, "training.validate_rows": 500,
        "training.precision": precision, "decoding.no_repeat_ngram": 0, "decoding.max_target_tokens": _MAX_TOKENS,
        "scaling.num_workers": 1, "scaling.threads": 1, "output.path": work,
    }  # fmt: skip
    train_arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    subprocess.run(["rm", "-rf", work], check=True)
    run([sys.executable, "-m", "jobs.train", *train_arguments], dict(os.environ))
    run([
        sys.executable, "-m", "jobs.evaluate", "--model.path", work / "bundle", "--input.path", args.pairs / "test",
        "--input.max_rows", args.test_rows, "--output.path", work / "figures.json",
        "--output.hypotheses", work / "hypotheses.parquet",
    ], dict(os.environ))  # fmt: skip
    records = [json.loads(line) for line in (work / "train.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"][1:]
    texts = pq.read_table(work / "hypotheses.parquet")["hypothesis"].to_pylist()
    speed = sum(step["tokens_per_s"] for step in steps) / len(steps)
    return {
        "tokens_per_s": speed,
        "bleu": bleu(args, texts),
        "pairs_per_step": records[-1]["pairs_seen"] / args.steps,
        "options": {name: str(value) for name, value in options.items()},
    }


def bleu(args: argparse.Namespace, hypotheses: list[str]) -> float:
    """Return the BLEU of hypotheses for the test sentences."""
    references = (args.work / "references").read_text().rstrip("\n").split("\n")
    return float(sacrebleu.corpus_bleu(hypotheses, [references]).score)


def run(command: list[Any], environment: dict[str, str]) -> str:
    """Run a command and return what it printed; if it fails, print its last lines and exit."""
    args = [str(argument) for argument in command]
    print("$", *args, flush=True)
    process = subprocess.run(args, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if process.returncode:
        sys.exit(f"{process.stdout[-3000:]}\n{command[0]} failed")
    return process.stdout


if __name__ == "__main__":
    main()
