#!/bin/sh
# Build the project's wheel into a folder: build-wheel.sh FOLDER. Run it in the folder of the sources.
set -eu
pip wheel --quiet --no-cache-dir --no-deps --wheel-dir "$1" .
