# Two commands for a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test lint types docs unit campaign audit clean

demo: .venv/demo
	$(BIN)/prioritymonitor demo

test: lint types docs unit

unit: .venv/test
	$(BIN)/pytest -n 2

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/test
	$(BIN)/mypy

docs: .venv/test
	$(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml

# About a quarter of an hour on two quiet cores; `make unit` makes each fault once.
campaign: .venv/test
	$(BIN)/python -m benchmarks.robustness.campaign --runs 1000 --jobs 2

# What is installed against the known vulnerabilities; what could not be compared is named. It takes a
# network: without, it says so and lists what is installed.
audit: .venv/test
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable --progress-spinner off || \
	  { echo "not audited, or not clean; installed is:"; $(BIN)/pip list --format freeze; exit 1; }

# torch goes first and pinned: a range would pull the newest build with gigabytes of CUDA.
.venv/torch: .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt torch
	touch $@

.venv/demo: .venv/torch pyproject.toml
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[cli]'
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[test,lint,docs]'
	touch $@

clean:
	rm -rf .venv site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
