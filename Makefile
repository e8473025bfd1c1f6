# `make demo` and `make test` need Python 3.11 or later and the package index, nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	  "$$p" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ROOM ?=
CLUSTER ?=
AGAIN ?=
# After so many minutes, test-cluster begins no further test.
MINUTES ?=
TESTS := tests$(if $(ROOM),/$(ROOM))
# What `make test` tries on a real cluster; `make test-cluster` tries the rest after it, faults first.
cluster_files = $(foreach name,$(1),tests/cluster/test_cluster_$(name).py)
CLUSTER_CORE := $(call cluster_files,build serving cli delivery deployment gitops placement schema)
CLUSTER_NEXT := $(call cluster_files,faults store_faults watch_faults upgrades states node_faults)
CLUSTER_ALL := $(CLUSTER_CORE) $(CLUSTER_NEXT) $(filter-out $(CLUSTER_CORE) $(CLUSTER_NEXT),$(sort $(wildcard tests/cluster/test_*.py)))

# The cluster's tests run beside the others in .ci/run: what failed is remembered apart from theirs.
APART := -o cache_dir=.pytest_cache/cluster

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Create .venv with everything that demo and tests need

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; name one: make PYTHON=/path/to/python3"; exit 1; }
	@PYTHON="$(PYTHON)" VENV="$(VENV)" tools/setup.sh
	@touch $@

demo: $(READY) ## Build tiny-llama for sm8750 and cpu, run a prompt through both, serve it
	@PATH="$(abspath $(BIN)):$$PATH" examples/tiny-llama/demo.sh

test: $(READY) ## Every test that this machine can run (ROOM=planner for one room, CLUSTER=no for none)
	@if [ -z "$(ROOM)" ] && [ "$(CLUSTER)" != no ] && (cd tests/cluster && $(abspath $(BIN))/python -m harness check); then \
	  GENAI_TEST_GO=1 $(BIN)/python -m pytest -n auto --dist loadfile tests --ignore tests/cluster \
	  && GENAI_TEST_CLUSTER=1 $(BIN)/python -m pytest $(CLUSTER_CORE) \
	  && echo "FAULTS, STORES AND UPGRADES ON THE CLUSTER WERE NOT RUN: make test-cluster runs them (40 minutes)"; \
	else \
	  $(BIN)/python -m pytest -n auto --dist loadfile $(AGAIN) $(TESTS); \
	fi

test-long: $(READY) ## The long versions of bounded tests (fuzzers, attacks): tens of minutes
	@$(BIN)/python -m pytest -m long $(TESTS)

check: $(READY) ## Format, lint, types, import walls, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate.py --check

fix: $(READY) ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(READY) ## Write the reference pages that come from the code
	$(BIN)/python tools/generate.py

bench: ## Say which benchmarks there are and how to run them
	@echo "see benchmarks/README.md: each script prints a table and its peers, measured in one run"

test-health: $(READY) ## What Argo CD, Flux and promtool say of what is shipped for them (Go; about 5 minutes once)
	@GENAI_TEST_GO=1 $(BIN)/python -m pytest tests/health

bench-cluster: $(READY) ## The operator on a real cluster: what tasks and builds cost (root; about 30 minutes)
	@$(BIN)/python benchmarks/cluster.py

judge-lm-eval: $(READY) ## Is the loss that lm-eval measures through a server that of evaluate? (0.8 GB once)
	@cd tools && $(abspath $(BIN))/python -m judges.loss_by_lm_eval

judge-comply: $(READY) ## What llm-comply says of the server's chat API
	@cd tools && $(abspath $(BIN))/python -m judges.comply

judge-aimet: $(READY) ## Write which scales and axes AIMET itself gives the fixtures' tensors (7 GB once)
	@cd tools && $(abspath $(BIN))/python -m judges.encodings_by_aimet

test-cluster-core: $(READY) ## Builds, command line, Helm, GitOps and placement on it (about 12 minutes)
	@GENAI_TEST_CLUSTER=$${GENAI_TEST_CLUSTER:-1} $(BIN)/python -m pytest $(AGAIN) $(CLUSTER_CORE)

test-cluster: $(READY) ## The operator on a real cluster of two nodes, faults included (root; about 40 minutes)
	@GENAI_TEST_CLUSTER=$${GENAI_TEST_CLUSTER:-1} GENAI_TEST_MINUTES=$(MINUTES) $(BIN)/python -m pytest $(APART) $(AGAIN) $(CLUSTER_ALL)

cluster-programs: ## Compile and build what the tests' cluster runs, once (root, Go; about 10 minutes)
	@cd tests/cluster && "$(PYTHON)" -m harness.build

image-htp: ## The stages' image with the vendor's wheel, for Snapdragon targets (docker or BUILDER=buildah)
	$(or $(BUILDER),docker) build --target stages --build-arg HTP=1 --tag genai-stages-htp .

image-serving-htp: ## A server's image with the vendor's wheel, for server.emulate (docker or BUILDER=buildah)
	$(or $(BUILDER),docker) build --target serving --build-arg HTP=1 --tag genai-serving-htp .

release: $(READY) ## Wheel, charts and images of one version into dist/ (helm or Go; docker or buildah)
	$(BIN)/python tools/release.py $(RELEASE)

requirements: $(READY) ## Write what goes into images by hash, after constraints.txt changed (x86-64; asks the package index)
	$(BIN)/python tools/requirements.py

manifests: generate ## Render the kustomize base from the chart (helm, or Go to build it)
	$(BIN)/python tools/manifests.py

cluster-up: $(READY) ## A real two-node Kubernetes on this machine (root; see tests/cluster/README.md)
	@cd tests/cluster && $(abspath $(BIN))/python -m harness up

cluster-down: $(READY) ## End it and leave nothing behind
	@cd tests/cluster && $(abspath $(BIN))/python -m harness down

clean: ## Remove what was built, not the store
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: judge-lm-eval judge-comply judge-aimet help setup demo test check fix generate manifests requirements release bench bench-cluster test-long test-health test-cluster test-cluster-core cluster-programs image-htp image-serving-htp cluster-up cluster-down clean
