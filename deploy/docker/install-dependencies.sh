#!/bin/sh
# Install exactly what the lock file of a variant, cpu or cuda, lists: install-dependencies.sh VARIANT [OPTION of pip …]
set -eu
variant=$1
shift
here=$(dirname "$0")
if [ "$variant" = cpu ]; then
    pip install --quiet --no-cache-dir --no-deps "$@" \
        --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" torch==2.13.0+cpu
fi
pip install --quiet --no-cache-dir --no-deps --require-hashes "$@" --requirement "$here/requirements.$variant.txt"
