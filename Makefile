# The whole of it runs on a fresh machine with Python 3.11 or newer and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
RUNS := runs
# An environment of its own for the lowest versions.
LOWEST := .venv-lowest
# Processes that share out the test files.
JOBS ?= 2

.PHONY: help demo test test-slow test-mutations test-lowest fuzz lint clean

help:
	@echo "make demo   install, fine-tune on data_samples/, predict, say where the results are"
	@echo "make test   install, run all tests            (make test ARGS='-k cache' for some)"
	@echo "make test-slow   the attacks by the thousand, in at most 40 minutes; prints what withstood"
	@echo "make test-mutations   break one protection after the other, see the tests notice"
	@echo "make test-lowest   the tests with the lowest versions that pyproject.toml allows"
	@echo "make fuzz   random bytes to all that reads files of others, 2 minutes each (MINUTES=10)"
	@echo "make lint   ruff check, ruff format --check, mypy"
	@echo "make clean  remove .venv and what tools left behind; runs/ stays"

# Editable in both cases, so that a changed source never runs as an old copy.
$(VENV)/.for-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.for-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.for-demo

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) not found; name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: transferkit needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)" >&2; \
	  echo "       name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

demo: $(VENV)/.for-demo
	@set -e; run="$(RUNS)/demo-$$(date +%Y-%m-%dT%H-%M-%S)"; \
	$(BIN)/transferkit finetune data_samples --out "$$run"; \
	$(BIN)/transferkit predict "$$run" data_samples/val/animal/bear.webp \
	  data_samples/val/food/banana.webp data_samples/val/plant/rose.webp \
	  data_samples/val/sport/tennis.webp data_samples/val/vehicle/helicopter.webp; \
	echo; echo "results:  $$run"; echo "report:   $$run/report.html"; \
	echo "your own: $(BIN)/transferkit finetune FOLDER_OF_PICTURES"

test: $(VENV)/.for-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.for-dev
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadgroup $(ARGS)

test-mutations: $(VENV)/.for-dev
	$(BIN)/python tests/mutations.py $(ARGS)

MINUTES ?= 2
fuzz: $(VENV)/.for-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	@set -e; for target in picture manifest recipe run; do \
	  $(BIN)/python tests/fuzz/fuzz.py $$target $(MINUTES); done

test-lowest: $(LOWEST)/.made
	TRANSFERKIT_TEST_WARNINGS=default $(LOWEST)/bin/python -W default -m pytest -W default -n $(JOBS) --dist loadfile $(ARGS)

$(LOWEST)/.made: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -c constraints-lowest.txt -e '.[dev]'
	@touch $@

lint: $(VENV)/.for-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST) build dist transferkit.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find transferkit tests data_samples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
