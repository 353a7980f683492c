#!/usr/bin/env bash
# Writes what the image installs, to the exact release and sha256: requirements.cpu.txt and requirements.cuda.txt.
# Run it after a change of pyproject.toml's dependencies, with uv (pip install uv), and commit what it writes.
#
# A CPU build of torch has its own index. Its release alone is pinned, in the Dockerfile, which takes it from there; for the
# versions of all else the build must be found here too: UV_FIND_LINKS=/folder/of/wheels, or the default below.
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
