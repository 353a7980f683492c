#!/usr/bin/env bash
# Write the lock files of the image, requirements.cpu.txt and requirements.cuda.txt, with the version and sha256 of each package.
# Run it after the dependencies in pyproject.toml have changed, with uv (pip install uv), and commit the files.
#
# The CPU build of torch comes from an index of its own, so install-dependencies.sh pins it by version. To resolve the other
# packages, uv must find the build too: at UV_FIND_LINKS=/folder/of/wheels, or at the default below.
set -euo pipefail
cd "$(dirname "$0")/../.."
wheels=${UV_FIND_LINKS:-https://download.pytorch.org/whl/torch/}
unset UV_FIND_LINKS
torch=$(sed -n 's/^ *"\(torch==[0-9.]*\)",$/\1/p' pyproject.toml)

lock() {
    uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate \
        --custom-compile-command deploy/docker/lock.sh "$@"
}

lock pyproject.toml --output-file deploy/docker/requirements.cuda.txt
echo "$torch+cpu" | UV_FIND_LINKS=$wheels lock pyproject.toml \
    --override - --no-emit-package torch --no-emit-find-links --output-file deploy/docker/requirements.cpu.txt
