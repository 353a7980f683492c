"""Summarize a folder of text files: python docs/examples/own_documents.py FOLDER."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline

folder = Path(sys.argv[1])
texts = folder / "texts"
if not texts.exists():  # two documents, if you have none
    texts.mkdir(parents=True)
    samples = {
        "storage": "We study how to store large tables of data in files, and propose a format that is fast to read.",
        "language": "This paper presents a neural network that translates sentences between many languages at once.",
    }
    for name, text in samples.items():
        (texts / f"{name}.txt").write_text(text)

# Any tool that writes Parquet will do. Ids must be unique.
files = sorted(texts.glob("*.txt"))
documents = pa.table({"id": [file.stem for file in files], "text": [file.read_text() for file in files]})
pq.write_table(documents, folder / "documents.parquet")

options = ["--input.path", f"{folder}/documents.parquet", "--output.path", f"{folder}/out"]
subprocess.run([sys.executable, "-m", "jobs.summarize", *options], check=True)  # run it again: it skips what is unchanged

for row in pipeline.read_summaries(f"{folder}/out").read_all().to_pylist():
    print(row["id"], "→", row["summary"])
