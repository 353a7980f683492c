#!/bin/sh
# Write the packages of a Python environment, with their licenses, as a CycloneDX file: sbom.sh PYTHON FILE
set -eu
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python -m venv "$tool"
"$tool/bin/pip" install --quiet --no-cache-dir cyclonedx-bom==7.5.0
"$tool/bin/cyclonedx-py" environment "$1" --output-reproducible --output-file "$2"
