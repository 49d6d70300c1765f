# The whole vocabulary of the project: make help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS ?= triton
STAMP := $(VENV)/.installed
SECONDS_SINCE = $$(( $$(date +%s) - $$started ))

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cluster test-many test-kill test-all check fix stubs bench bench-registry bench-compression bench-all up clean

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Make .venv with everything (again only when pyproject.toml or constraints.txt changed)

$(STAMP): pyproject.toml constraints.txt tools/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" tools/setup.sh

demo: setup ## The whole loop on real reviews: train, compress three ways, deploy, call, compare
	@$(BIN)/python -m maas.demo

test: setup ## Unit, contract and service tests
	@started=$$(date +%s); $(BIN)/pytest -n auto --dist loadfile tests/unit tests/contract tests/service; status=$$?; \
	echo "make test: $(SECONDS_SINCE) s"; exit $$status

test-cluster: setup ## Whole clusters of real processes: kill each one, call through the gateway
	@$(BIN)/pytest tests/cluster

test-many: setup ## 200 small models in memory that holds 20 of them
	@MAAS_TEST_MODELS=200 $(BIN)/pytest -s tests/cluster/test_cluster_many_models.py

test-kill: setup ## `kill -9` of the registry at 200 random points of its work, on each pair of stores; 20 minutes
	@MAAS_TEST_KILLS=200 $(BIN)/pytest -s tests/cluster/test_registry_kills.py

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

bench: setup ## Beside Triton (PEERS=all: and four others): a table in bench/RESULTS.md, a plot; 12 to 15 minutes
	@$(BIN)/python bench/serving.py --peers $(PEERS) --write

bench-registry: setup ## The registry on both pairs of stores: 1 GB there and back, 100,000 versions, 50 writers, 200 kills
	@$(BIN)/python bench/registry.py --write

bench-compression: setup ## What compression gives on the review models, beside single tools and peers; 2 hours the first time
	@$(BIN)/python bench/compression.py --write

bench-all: setup ## Every table of bench/RESULTS.md; 4 hours on a machine that does nothing else
	@$(BIN)/python bench/run_all.py

up: setup ## Start a cluster on this machine, in the foreground
	@$(BIN)/maas up

clean: ## Remove what make made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache
