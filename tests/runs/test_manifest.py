"""Manifests conform to the committed JSON schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

import pipeline.runs
from pipeline.runs.manifest import Manifest, manifest_schema


def test_manifest_conforms_to_the_committed_schema(nights: Path) -> None:
    """Regenerate it with: python -c "from pipeline.runs.manifest import manifest_schema as s; print(s(), end='')"."""
    committed = Path(pipeline.runs.__path__[0]) / "manifest.schema.json"
    assert committed.read_text() == manifest_schema(), "regenerate manifest.schema.json"
    schema = json.loads(committed.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    manifest = json.loads((nights / "out/runs/2026/manifest.json").read_text())
    assert list(validator.iter_errors(manifest)) == []
    assert Manifest.model_validate(manifest).counts.read == 62
    manifest["counts"]["read"] = "two"
    assert [list(error.path) for error in validator.iter_errors(manifest)] == [["counts", "read"]]
