# make demo    the whole chain on pictures that it draws itself: demo/demo.png and a table
# make test    lint, types and the fast tests
# make soak    the slow tests
# make gpu     what needs an NVIDIA GPU, in stages; results under bench/results
# make docker  the images of Dockerfile.trt; make docker-test runs the CPU one
# make dev     the environment that these use, in .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
INSTALLED := $(VENV)/.installed

# A line of Python for a shell; GNU make 3.81 takes all of this.
VERSION := "import sys; print('%d.%d' % sys.version_info[:2])"
NEW_ENOUGH := "import sys; sys.exit(sys.version_info < (3, 11))"
WANTED = $(shell $(PYTHON) -c $(VERSION))
PRESENT = $(shell $(BIN)/python -c $(VERSION) 2> /dev/null)
# An environment that is there and new enough is kept, unless a PYTHON is named.
KEPT = $(and $(filter file,$(origin PYTHON)),$(shell $(BIN)/python -c $(NEW_ENOUGH) 2> /dev/null && echo yes))

.PHONY: demo test lint types pycuda bindings tritonserver ray unit soak docker docker-test gpu readme dev clean

demo: $(BASE)
	$(BIN)/unetrt demo --out demo

# A compiler and a type checker use one core each.
test: lint
	$(MAKE) -j2 types bindings
	$(MAKE) unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile.trt

types: $(INSTALLED)
	$(BIN)/mypy

# For the tests of the CUDA slot; where it cannot be built it says why, and they are skipped.
pycuda: $(INSTALLED)
	scripts/install_pycuda.sh $(BIN)/python

# To check the names that we use on TensorRT's objects; does nothing where there is no index.
# After pycuda: one pip at a time.
bindings: $(INSTALLED) pycuda
	scripts/install_trt_bindings.sh $(BIN)/python

# In the order of the folders: by their numbers of tests, files of a few long ones would come last.
unit: $(INSTALLED)
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations=10

# For the tests of `unetrt triton` in a real server; does nothing where its wheel does not run.
tritonserver: $(INSTALLED)
	scripts/install_tritonserver.sh $(BIN)/python

# Of the slow tests alone: a cluster's engine of 400 MB.
ray: $(INSTALLED)
	$(INSTALL) -e '.[ray]'

soak: $(INSTALLED) tritonserver ray
	$(BIN)/pytest -m slow -n auto --maxprocesses 2 --dist loadfile --durations=10

# STAGE=install|tests|train|bench|all, on a machine with an NVIDIA GPU, with the PYTHON named, else
# that of the environment where it is there.
gpu:
	PYTHON=$(if $(filter file,$(origin PYTHON)),,$(PYTHON)) scripts/gpu.sh $(or $(STAGE),all)

# TARGET=trt|cpu: the image of Dockerfile.trt, as unetrt:TARGET.
TARGET ?= trt
DOCKER ?= docker
# For podman, whose own format of an image has no HEALTHCHECK: --format docker.
BUILD_FLAGS ?=

docker:
	$(DOCKER) build $(BUILD_FLAGS) -f Dockerfile.trt --target $(TARGET) -t unetrt:$(TARGET) .

# The CPU image, and the whole chain in it on pictures that it draws itself.
docker-test:
	$(MAKE) docker TARGET=cpu
	$(DOCKER) run --rm unetrt:cpu doctor
	$(DOCKER) run --rm unetrt:cpu demo

dev: $(INSTALLED)

INSTALL := $(BIN)/pip install --quiet --upgrade-strategy only-if-needed -c constraints.txt

# A PYTHON that is named is the environment's: with another one it is made anew.
ifneq ($(origin PYTHON),file)
ifneq ($(WANTED),$(PRESENT))
$(BASE): FORCE
endif
endif
FORCE:

# One environment for all targets, in two steps: the demo does not wait for what only tests need.
# An environment of another version is emptied: what was built for that one does not load.
$(BASE): setup.cfg pyproject.toml constraints.txt
	@$(if $(KEPT),$(BIN)/python,$(PYTHON)) -c $(NEW_ENOUGH) || { \
	    echo "make: PYTHON=$(PYTHON) is not a Python that unetrt runs on" >&2; \
	    echo "Seen: $(or $(WANTED),no such program). Expected: 3.11 or newer" >&2; \
	    echo "Hint: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(if $(KEPT),,$(PYTHON) -m venv $(if $(filter $(WANTED),$(PRESENT)),,--clear) $(VENV))
	$(INSTALL) -e .
	touch $@

$(INSTALLED): $(BASE)
	$(INSTALL) -e '.[rtx,wandb,triton,bands,dev]'
	touch $@

# The tables of both READMEs, from the results under bench/results.
readme: $(INSTALLED)
	$(BIN)/python -m unetrt.bench.readme README.md README.zh-CN.md

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
