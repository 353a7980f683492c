#!/bin/sh
# Install the project's wheel and check that all imports of the jobs are installed: install-wheel.sh FOLDER
set -eu
pip install --quiet --no-cache-dir --no-deps --no-index "$1"/*.whl
cd /
python -c 'import jobs.prepare, jobs.train, jobs.evaluate, jobs.summarize, jobs.status, jobs.verify, jobs.compact'
