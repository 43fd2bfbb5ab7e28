# make demo    the whole chain on pictures that it draws itself: demo/demo.png and a table
# make test    lint, types and the fast tests
# make soak    the slow tests
# make gpu     what needs an NVIDIA GPU, in stages; results under bench/results
# make dev     the environment that these use, in .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types pycuda unit soak gpu readme dev clean

demo: $(INSTALLED)
	$(BIN)/unetrt demo --out demo

test: lint types pycuda unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# For the tests of the CUDA slot; does nothing where there is no CUDA toolkit.
pycuda: $(INSTALLED)
	scripts/install_pycuda.sh $(BIN)/python

unit: $(INSTALLED)
	$(BIN)/pytest --durations=10

soak: $(INSTALLED)
	$(BIN)/pytest -m slow --durations=10

# STAGE=install|tests|train|bench|all, on a machine with an NVIDIA GPU, with the PYTHON named.
gpu:
	PYTHON=$(PYTHON) scripts/gpu.sh $(or $(STAGE),all)

dev: $(INSTALLED)

# One environment for all targets: what is tested is what the demo shows.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt -e '.[rtx,wandb,dev]'
	touch $@

# The tables of both READMEs, from the results under bench/results.
readme: $(INSTALLED)
	$(BIN)/python -m unetrt.bench.readme README.md README.zh-CN.md

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
