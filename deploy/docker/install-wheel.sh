#!/bin/sh
# Installs the project's wheel beside its dependencies, and sees that they are all that the jobs import: install-wheel.sh FOLDER
set -eu
pip install --quiet --no-cache-dir --no-deps --no-index "$1"/*.whl
cd /
python -c 'import jobs.prepare, jobs.train, jobs.evaluate, jobs.summarize, jobs.status, jobs.verify, jobs.compact'
