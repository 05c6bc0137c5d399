# Every target works on a fresh machine: it brings uv, Python packages and the model itself.
.DEFAULT_GOAL := help
PYTHON ?= 3.11
UV = $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)
RUN := .venv/bin/
# A file's tests share what they build: they stay in one process. More than four have no memory for torch on a laptop.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile

help:  ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.stamp  ## Create .venv with everything that demo, test and check need

.venv/.stamp: pyproject.toml scripts/setup
	@bash scripts/setup $(PYTHON)
	@touch $@

demo: setup  ## From a manifest to an answer on this machine, no cluster needed
	@$(RUN)shoal demo

test: setup  ## Run the whole test suite
	$(RUN)python -m pytest $(PARALLEL)

compiled: build/compiled/done  ## Lay the router out in build/compiled as the images have it: its hot path compiled (a C compiler; a minute)

build/compiled/done: .venv/.stamp $(wildcard crds/shoal_api/*.py* router/shoal_router/*.*) scripts/compile_router.py
	@rm -rf build/compiled && mkdir -p build/compiled
	@cp -r crds/shoal_api router/shoal_router build/compiled
	$(RUN)python scripts/compile_router.py build/compiled
	@touch $@

test-compiled: compiled  ## The router's tests against that
	$(RUN)python -m pytest $(PARALLEL) -o "pythonpath=. build/compiled operator engine" tests/router

check: setup  ## Formatting, lint, types, import rules, generated files fresh
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	MYPYPATH=benchmarks/h200 $(RUN)mypy benchmarks/h200
	MYPYPATH=benchmarks/router $(RUN)mypy benchmarks/*.py benchmarks/router
	$(RUN)lint-imports
	$(RUN)python -m shoal_api.crd --check

generate:  ## Rewrite generated files: CRD, reference docs, gRPC messages
	$(RUN)python -m shoal_api.crd
	$(RUN)python -m grpc_tools.protoc -Icrds --python_out=crds --pyi_out=crds --grpc_python_out=crds crds/shoal_api/router_state.proto crds/shoal_api/engine_state.proto

format:  ## Format and fix what the linters can fix
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

bench: setup  ## Measure against the peers on this machine's CPU (builds llama.cpp: minutes)
	$(UV) pip install --python .venv/bin/python --group bench
	$(RUN)python benchmarks/cpu_offline.py

cluster:  ## A real single-node Kubernetes on this machine, for e2e (root; the first time builds it: 8 minutes)
	@bash e2e/cluster/up.sh

images:  ## Build the images of engine, router and operator and load them into the cluster (root; the first time takes minutes)
	@bash e2e/cluster/images.sh

e2e: setup  ## Every scenario on that cluster, or on the one of KUBECONFIG (half an hour on two cores; SCENARIOS="e2e/zero" for some; see e2e/README.md)
	@test -n "$$K8S" || bash e2e/cluster/build.sh  # here: on a bare machine it takes longer than a test may
	$(RUN)python -m pytest $(or $(SCENARIOS),e2e) -v -s

cluster-down:  ## End it and give the machine back
	@bash e2e/cluster/down.sh

.PHONY: help setup demo test compiled test-compiled check generate format bench cluster images e2e cluster-down
