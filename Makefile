# Passerelle: `make serve` runs it, `make test` proves it. Everything else is listed by `make help`.
SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8000
CONFIG ?=
PASSERELLE_HOME ?= $(HOME)/.passerelle

SERVE_FLAGS := --port $(PORT) $(if $(CONFIG),--config $(CONFIG))

.PHONY: help serve test test-quick test-vllm test-triton test-ray test-clients check format bench docs lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@echo "==> Creating the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Passerelle needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "Could not create $(VENV). On Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 2; }

# A stamp per lock file: installing again costs nothing until the lock changes.
$(VENV)/.base: $(BIN)/python requirements/base.txt pyproject.toml
	@echo "==> Installing Passerelle and its locked dependencies"
	@sh tools/install.sh $(BIN)/python requirements/base.txt
	@touch $@

$(VENV)/.dev: $(BIN)/python requirements/dev.txt pyproject.toml
	@echo "==> Installing Passerelle with its test tools, all locked"
	@sh tools/install.sh $(BIN)/python requirements/dev.txt
	@touch $@ $(VENV)/.base

serve: $(VENV)/.base ## Set up and run the gateway with the embedded model (PORT=, CONFIG=, PASSERELLE_HOME=)
	@PASSERELLE_HOME="$(PASSERELLE_HOME)" exec $(BIN)/passerelle serve $(SERVE_FLAGS)

test: $(VENV)/.dev ## Set up and run every test but the named tiers
	@$(BIN)/python tools/run_tests.py

test-quick: $(VENV)/.dev ## The tests that take seconds
	@$(BIN)/python tools/run_tests.py --quick

test-vllm: $(VENV)/.dev ## A real vLLM on the CPU as target (builds a 3.4 GB environment the first time)
	@$(BIN)/python -m pytest tests/vllm -m vllm

test-triton: $(VENV)/.dev ## A real Triton server as target (builds a 370 MB environment the first time)
	@$(BIN)/python -m pytest tests/triton -m triton

test-ray: $(VENV)/.dev ## Our Ray Serve application on a cluster of two nodes (builds an 800 MB environment the first time)
	@$(BIN)/python -m pytest tests/rayserve -m ray

test-clients: $(VENV)/.dev ## Haystack, LlamaIndex and TGI's own client (builds environments of 500 MB the first time)
	@$(BIN)/python -m pytest tests/ecosystem -m clients

check: $(VENV)/.dev ## Format, lint, types, import directions, stale documents
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --config .importlinter
	@$(BIN)/passerelle docs --check

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## Compare with the peers on this machine; results in docs/benchmarks.md
	@$(BIN)/python -m benchmarks.compare

docs: $(VENV)/.dev ## Write the generated documents
	@$(BIN)/passerelle docs

lock: $(VENV)/.dev ## Lock the dependencies anew, with hashes and none younger than a week
	@sh tools/lock.sh $(BIN)/python

clean: ## Remove the environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache
