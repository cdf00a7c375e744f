# Every target sets up .venv by itself. Needed beforehand: Python 3.11 or later with pip, and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= logical

.PHONY: help demo test notebooks long lint format bench clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /	/'

demo: $(VENV)/.experiments  ## digits with wrong labels: a table and a picture, under two minutes
	@$(BIN)/python -m experiments.digits_demo

test: $(VENV)/.tests lint  ## style, types, tests and doctests, under six minutes on two cores
	$(BIN)/python -m pytest -n $(WORKERS)

notebooks: $(VENV)/.tests  ## run every cell of the notebooks, a minute
	$(BIN)/python -m pytest -n 0 tests/notebooks_test.py

long: $(VENV)/.tests  ## tests left out of `make test`, twenty kills, 200 steps on CIFAR-10 if there; most of an hour
	$(BIN)/python -m pytest -n 0 -m long
	$(BIN)/python -m pytest -n 0 -s tests/long_checks.py

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.tests  ## put the code into its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.experiments  ## FLOPs and wall time of the steps against plain training
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.rules --count=lowered
	$(BIN)/python -m benchmarks.meta

clean:  ## remove .venv and caches, not results
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed, $(PYTHON) is older: call make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) has no venv module: install it (Debian: apt install python3-venv)"; exit 1; }

$(VENV)/.experiments: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), a few minutes the first time."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[experiments]"
	@touch $@

$(VENV)/.tests: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV), a few minutes the first time."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[tests]"
	@touch $@ $(VENV)/.experiments
