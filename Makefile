# make demo    the whole way on real RL-tuned weights that it trains itself (FAST=1: without SmolLM2)
# make test    the whole test suite
# make check   formatter, linter, type checker
# make drill   what is lost and what is done again when parts of a Ray cluster die
.PHONY: install demo test check bench drill clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,docs]'
	touch $(STAMP)

demo: install
	$(BIN)/rlsparse demo $(if $(FAST),--fast)

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/extract.py

drill: install
	$(BIN)/python -m tests.drill

clean:
	rm -rf .venv rlsparse-demo rlsparse-reproduce
