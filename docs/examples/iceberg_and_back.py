"""Documents from an Iceberg table, summaries back into another one: python docs/examples/iceberg_and_back.py FOLDER.

Needs the package's extra "iceberg". The catalog is a SQLite file here; name your own in .pyiceberg.yaml.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from pyiceberg.catalog import load_catalog

from pipeline.config.types import SAMPLE

folder = Path(sys.argv[1]).resolve()
folder.mkdir(parents=True, exist_ok=True)
properties = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
catalog = load_catalog("default", **properties)
catalog.create_namespace_if_not_exists("library")
if not catalog.table_exists("library.documents"):  # stands for your table
    documents = pq.read_table(SAMPLE / "documents/part-0.parquet", columns=["id", "text"]).slice(0, 20)
    catalog.create_table("library.documents", documents.schema).append(documents)


def run(job: str, *options: str) -> None:
    """Run a job and stop if it fails."""
    subprocess.run([sys.executable, "-m", f"jobs.{job}", *options], check=True)


# The three jobs of a night. Run them again: nothing happens until a document is new or changed.
run("fetch", "--input.kind", "iceberg", "--input.table", "library.documents",
    "--input.catalog_properties", json.dumps(properties),
    "--output.path", f"{folder}/documents")  # fmt: skip
run("summarize", "--input.path", f"{folder}/documents", "--output.path", f"{folder}/out")
run("deliver", "--input.path", f"{folder}/out", "--output.kind", "iceberg", "--output.table", "library.summaries",
    "--output.catalog_properties", json.dumps(properties))  # fmt: skip

print(catalog.load_table("library.summaries").scan(selected_fields=("id", "summary")).to_pandas().head())
