#!/bin/sh
# Installs the project's wheel beside its dependencies, and sees that each job starts: install-wheel.sh FOLDER
set -eu
pip install --quiet --no-cache-dir --no-deps --no-index "$1"/*.whl
cd /
for job in prepare train evaluate summarize status verify compact; do
    python -m "jobs.$job" --help > /dev/null
done
