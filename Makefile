# Every target does its own set-up; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help demo test check format docs bench races faults clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "relay needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job on embedded parts, with faults, and a verdict
	@$(BIN)/relay demo

test: $(STAMP) ## the tests, on real Postgres and real Kafka (needs a JDK 17+ and Maven)
	@$(BIN)/python -m pytest -m 'not faults and not bench' $(ARGS)

check: $(STAMP) ## format, lint, strict types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## put the code into the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: $(STAMP) ## write the tables of the documents from the code
	@$(BIN)/python -m tests.support.documents

bench: $(STAMP) ## the figures, each with its limit and their ratio (about an hour and a half; ARGS=drain for one)
	@$(BIN)/python -m tests.bench $(ARGS)

races: .cache/races/.installed ## ten races, played with the caches in use: the table of docs/COMPARISON-CACHES.md
	@.cache/races/bin/python -m tests.races

.cache/races/.installed: pyproject.toml
	@$(PYTHON) -m venv .cache/races
	@.cache/races/bin/pip install --quiet --disable-pip-version-check -e '.[races]'
	@touch $@

faults: $(STAMP) ## the full fault matrix and ten minutes of chaos; SEED=n replays (about an hour)
	@$(BIN)/python -m pytest -m faults -rA --timeout 3600 $(ARGS)

clean: ## remove what the targets made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
