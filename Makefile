# Every target does its own set-up; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help demo test check format docs bench races faults clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  parts of make faults, half an hour each at most: $(PARTS)"

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "relay needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP) ## the main job on embedded parts, with faults, and a verdict
	@$(BIN)/relay demo

# Two at a time, since most tests wait. Whole files, since some prepare a server once; ARGS=-n0 shows one as it runs.
test: $(STAMP) ## the tests, on real Postgres and real Kafka (needs a JDK 17+ and Maven)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not faults and not bench' $(ARGS)

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

bench: $(STAMP) ## the figures, each with its limit and their ratio (about an hour and three quarters; ARGS=drain for one)
	@$(BIN)/python -m tests.bench $(ARGS)

races: .cache/races/.installed ## ten races, played with the caches in use: the table of docs/COMPARISON-CACHES.md
	@.cache/races/bin/python -m tests.races

.cache/races/.installed: pyproject.toml
	@$(PYTHON) -m venv .cache/races
	@.cache/races/bin/pip install --quiet --disable-pip-version-check -e '.[races]'
	@touch $@

faults: $(STAMP) ## the full fault matrix and ten minutes of chaos; SEED=n replays, PART=name runs one (names below)
	@$(BIN)/python -m pytest -m faults -rA --timeout 3600 $(if $(PART),$(or $(PART_$(PART)),$(error PART is one of: $(PARTS)))) $(ARGS)

# Each part fits half an hour on two cores. Together they are what PART= unset runs.
PARTS          := brokers postgres sessions consumers copies chaos matrix samples
PART_brokers   := tests/faults/test_brokers.py
PART_postgres  := tests/faults/test_postgres.py
PART_sessions  := tests/faults/test_sessions.py
PART_consumers := tests/faults/test_consumers.py
PART_copies    := tests/faults/test_million_events.py
PART_chaos     := tests/faults/test_chaos.py
PART_matrix    := tests/faults/test_matrix.py
PART_samples   := tests/integration tests/simulation tests/unit

clean: ## remove what the targets made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
