#!/bin/sh
# Writes the components of a Python's environment in CycloneDX, each with its licence: sbom.sh PYTHON FILE
set -eu
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python -m venv "$tool"
"$tool/bin/pip" install --quiet --no-cache-dir cyclonedx-bom==7.5.0
"$tool/bin/cyclonedx-py" environment "$1" --output-reproducible --output-file "$2"
