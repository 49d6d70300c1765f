# The whole vocabulary of the project: make help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SECONDS_SINCE = $$(( $$(date +%s) - $$started ))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cluster test-many test-all check fix stubs bench up clean

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make .venv with everything (again only when pyproject.toml or constraints.txt changed)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" tools/setup.sh

demo: setup ## The whole loop on real reviews: train, compress three ways, deploy, call, compare
	@$(BIN)/python -m maas.demo

test: setup ## Unit, contract and service tests
	@started=$$(date +%s); $(BIN)/pytest tests/unit tests/contract tests/service; status=$$?; \
	echo "make test: $(SECONDS_SINCE) s"; exit $$status

test-cluster: setup ## Whole clusters of real processes: kill each one, call through the gateway
	@$(BIN)/pytest tests/cluster

test-many: setup ## 200 small models in memory that holds 20 of them
	@MAAS_TEST_MODELS=200 $(BIN)/pytest -s tests/cluster/test_cluster_many_models.py

test-all: test test-cluster ## Every test

check: setup ## Everything that a rule says: format, lint, types, protos, layers, stubs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy client/maas services gateway tools
	$(BIN)/lint-imports
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/python tools/protos.py
	$(BIN)/python tools/stubs.py --check

fix: setup ## Repair what a machine can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

stubs: setup ## Make the stubs under client/maas from protos/
	$(BIN)/python tools/stubs.py

bench: setup ## Requests/s and p50/p99 at 1, 16 and 64 in flight, direct and through the gateway
	@$(BIN)/python bench/serving.py

up: setup ## Start a cluster on this machine, in the foreground
	@$(BIN)/maas up

clean: ## Remove what make made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
