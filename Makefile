# The frame: one word for each thing a person does here. Needs git, make and Python 3.11 or newer; what
# tests need beyond that is fetched on first use. Stamp files make repeated runs quick.
#
#   make run         set up .venv and serve S3 on 127.0.0.1:9000 (ARGS="--port 9001" to change things)
#   make check       format, lint, types, layers; under a minute
#   make test        every test there is, after setting up what they need: the quick ones side by side,
#                    then those marked slow, then those that measure time, one after the other
#   make test-fast   the quick ones that start no node and need no client
#   make sim SEEDS=n the simulation with n seeds
#   make mutants     plant mistakes in Holdfast, and count how many seeds of the simulation find each
#   make drill       every fault that a node and a cluster must survive, under more load, with a table of
#                    what came of it; and every case of silent corruption there is; some twenty minutes
#   make bench       drive a node over HTTP and print what it does
#   make clean       remove what the above made, but never data

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
CLIENTS := .venv-clients
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check --no-input
SEEDS ?= 100
JOBS ?= 2
DRILL_RATE ?= 60
DRILL_SECONDS ?= 5
ARGS ?=
PYTEST_ARGS ?=

.PHONY: help run check test test-fast sim mutants drill bench clean

help:
	@sed -n 's/^#   //p' Makefile

run: $(VENV)/.stamp-run
	@exec $(BIN)/holdfast serve $(ARGS)

check: $(VENV)/.stamp-dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: $(VENV)/.stamp-dev $(CLIENTS)/.stamp $(VENV)/.stamp-tools
	@failed=0
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not alone" $(PYTEST_ARGS) || failed=1
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "slow and not alone" --durations=10 $(PYTEST_ARGS) || failed=1
	$(BIN)/python -m pytest -q -m alone $(PYTEST_ARGS) || failed=1
	exit $$failed

test-fast: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not alone" tests/unit tests/conformance tests/simulation $(PYTEST_ARGS)

sim: $(VENV)/.stamp-dev
	HOLDFAST_SIM_SEEDS=$(SEEDS) $(BIN)/python -m pytest tests/simulation $(PYTEST_ARGS)

mutants: $(VENV)/.stamp-dev
	$(BIN)/python -m tests.simulation.mutants $(ARGS)

drill: $(VENV)/.stamp-dev $(VENV)/.stamp-tools
	@failed=0
	export HOLDFAST_THOROUGH=1 HOLDFAST_DRILL_RATE=$(DRILL_RATE) HOLDFAST_DRILL_SECONDS=$(DRILL_SECONDS)
	export HOLDFAST_DRILL_TABLE="$$(mktemp)"
	$(BIN)/python -m pytest -q tests/system/test_drills.py tests/system/test_cluster_drills.py \
		tests/system/test_network_drills.py tests/system/test_region_lost.py tests/system/test_overload.py \
		tests/system/test_up.py \
		tests/system/test_balancer_follows.py tests/system/test_postgres_drill.py tests/system/test_half_sent_requests.py \
		tests/system/test_two_versions.py $(PYTEST_ARGS) || failed=1
	HOLDFAST_CUTS=12 $(BIN)/python -m pytest -q tests/system/test_cut_disks.py $(PYTEST_ARGS) || failed=1
	cat "$$HOLDFAST_DRILL_TABLE"
	rm -f "$$HOLDFAST_DRILL_TABLE"
	$(BIN)/python -m pytest -q -n $(JOBS) tests/unit/test_corruption_*.py \
		tests/simulation/test_index_corruption.py || failed=1
	exit $$failed

bench: $(VENV)/.stamp-dev
	$(BIN)/python -m holdfast.bench $(ARGS)

clean:
	rm -rf $(VENV) $(CLIENTS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	python="$$(.ci/python)"
	"$$python" -m venv $(VENV)

$(CLIENTS)/bin/python:
	python="$$(.ci/python)"
	"$$python" -m venv $(CLIENTS)

$(VENV)/.stamp-run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[balance]'
	touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.stamp-run

$(CLIENTS)/.stamp: constraints-clients.txt | $(CLIENTS)/bin/python
	$(CLIENTS)/bin/python -m pip install $(PIP_FLAGS) --requirement constraints-clients.txt
	touch $@

$(VENV)/.stamp-tools: .ci/tools | $(BIN)/python
	.ci/tools
	touch $@
