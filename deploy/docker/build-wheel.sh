#!/bin/sh
# Builds the project's wheel into a folder: build-wheel.sh FOLDER, from the folder of the sources.
set -eu
pip wheel --quiet --no-cache-dir --no-deps --wheel-dir "$1" .
