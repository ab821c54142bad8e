# make demo | test | lint | bench | help: each creates what it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-lowest lint bench clean

help:  ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: .venv/.demo  ## train a defect detector for solar cells: VGG16, 2,624 photographs, minutes
	$(BIN)/python -m tlx.train

test: .venv/.dev  ## the default tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: .venv/.dev  ## the slow tests and those that need pretrained weights
	$(BIN)/python -m pytest -n auto --dist worksteal -m "slow or pretrained"

test-lowest: .lowest/.done  ## the default tests with the oldest versions allowed, and any Python (PYTHON=python3.10)
	.lowest/bin/python -m pytest -n auto --dist worksteal -o filterwarnings=ignore

lint: .venv/.dev  ## format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

bench: .venv/.demo .bench/keras/.done .bench/torch/.done  ## tlx beside Keras, fastai, Lightning and torchvision; an hour or two
	$(BIN)/python benchmarks/peers/prepare.py .bench
	$(BIN)/python benchmarks/limit.py | tee .bench/limit.json
	$(BIN)/python benchmarks/peers/compare.py .bench $(BENCH)

clean:  ## remove the environments and what tools left behind; runs in outputs/ stay
	rm -rf .venv .lowest .bench .pytest_cache .mypy_cache .ruff_cache build dist

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make needs Python 3.11 or newer; tlx itself 3.10")'
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) -e '.[demo,dev]'
	touch $@

.lowest/.done: pyproject.toml
	$(PYTHON) -m venv .lowest
	grep -o '"[a-z][a-z0-9-]*>=[^",]*"' pyproject.toml | tr -d '"' | sed 's/>=/==/' > .lowest/constraints.txt
	.lowest/bin/python -m pip --disable-pip-version-check install --quiet -c .lowest/constraints.txt -e '.[demo,dev]'
	touch $@

.bench/%/.done: benchmarks/peers/%.txt
	$(PYTHON) -m venv .bench/$*
	.bench/$*/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	touch $@
