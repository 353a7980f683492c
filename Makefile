# The first target that needs it creates .venv. PIP_FLAGS passes options to pip: README, "Install", shows how to select a torch build.
PIP_FLAGS ?=
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)

.PHONY: summarize test exhaustive faults fuzz lint audit train bench clean

summarize: .venv/installed        ## summarize the shipped documents with the shipped model
	.venv/bin/python -m jobs.summarize --config configs/summarize.yaml

test: .venv/installed-dev         ## run the tests
	.venv/bin/python -m pytest

exhaustive: .venv/installed-dev   ## compare the decoder with the reference on 5,000 documents, with every type of model: one hour
	test -d prepared/arxiv || .venv/bin/python -m jobs.prepare --config configs/prepare.arxiv.yaml
	.venv/bin/python -m pytest -m exhaustive

faults: .venv/installed-dev       ## kill runs at each write, and at random moments on a cluster of three nodes: over an hour
	.venv/bin/python -m pytest -m faults
	.venv/bin/python tests/faults/chaos.py

fuzz: .venv/installed-dev         ## feed a million invalid inputs to everything that reads files of unknown origin: half an hour
	.venv/bin/python tests/fuzz/run.py --inputs 1000000 --json benchmarks/fuzz.json

audit: .venv/installed-dev        ## look up the installed packages among known vulnerabilities
	.venv/bin/python .ci/audit.py

lint: .venv/installed-dev         ## check style, types, import rules and secrets
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	git ls-files -z | xargs -0 .venv/bin/detect-secrets-hook --no-verify --baseline .secrets.baseline

.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is required; set PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet $(PIP_FLAGS) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/pip install --quiet $(PIP_FLAGS) --editable '.[dev]'
	@touch $@

train: .venv/installed            ## train the shipped model again, from arXiv abstracts and titles (configs/prepare.arxiv.yaml)
	test -d prepared/arxiv || .venv/bin/python -m jobs.prepare --config configs/prepare.arxiv.yaml
	.venv/bin/python -m jobs.train --config configs/train.arxiv.yaml

bench: .venv/installed            ## measure training with one worker and with two, on SCAN (configs/prepare.scan.yaml)
	test -d prepared/scan || .venv/bin/python -m jobs.prepare --config configs/prepare.scan.yaml
	.venv/bin/python -m jobs.benchmark workers --config configs/train.scan.yaml

clean:                            ## remove the environment and caches, but no output of a job
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info
