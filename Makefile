# Two commands for a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
NEWEST_PYTHON ?= python3.13
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test lint types docs unit test-oldest test-newest campaign audit clean

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

# The tests with the lower bounds in pyproject.toml, and with the newest of everything. On demand: each
# brings several GB of CUDA.
test-oldest: .venv-oldest/test
	.venv-oldest/bin/pytest -n 2

test-newest: .venv-newest/test
	.venv-newest/bin/pytest -n 2

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

.venv-oldest/test: VERSION_PYTHON = $(OLDEST_PYTHON)
.venv-newest/test: VERSION_PYTHON = $(NEWEST_PYTHON)
.venv-oldest/test .venv-newest/test: .venv-%/test: .ci/%.txt pyproject.toml
	test -x .venv-$*/bin/python || $(VERSION_PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --constraint .ci/$*.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
