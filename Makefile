# `make demo` and `make test` set up everything they need and run.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench

help:  ## print this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

setup: $(STAMP)  ## make .venv and install the pinned packages into it, once

# DS_BUILD_OPS=0: deepspeed's compiled ops want a compiler and minutes, and nothing here needs them.
# PIP_CONSTRAINT rather than -c: it also holds in the environments pip builds packages in, where an
# unpinned torch would be fetched a second time. Later versions of pip stopped doing that.
$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python3 found; install Python 3.11 or newer" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than 3.11; say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet pip==23.2.1
	DS_BUILD_OPS=0 PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -e '.[demo,dev]'
	@touch $@

demo: setup  ## the whole chain, tiny, from synthetic speech to judged spoken answers
	$(BIN)/aqaa walkthrough

test: setup  ## the test suite
	$(BIN)/python -m pytest -q

check: setup  ## style, types and the test suite; CI runs the suite alone
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

bench: setup  ## one of tools/bench beside its peer: make bench NAME=checkpoint ARGS=mib=96
	@test -f "tools/bench/$(NAME).py" \
	  || { echo "make: no tools/bench/$(NAME).py; say make bench NAME=$$(ls tools/bench | sed -n 's/\.py$$//p' | paste -sd'|')" >&2; exit 2; }
	$(BIN)/python tools/bench/$(NAME).py $(ARGS)
