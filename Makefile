# Every target makes what it needs: a virtual environment, the pinned requirements, the compiled package.
PYTHON ?= python3
VENV ?= .venv
# A package index with another build of torch, such as https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
RUN ?= runs/digits
OUT ?= benchmarks/results
DRY ?=
STAGES ?=
# A warning in a CUDA kernel is an error here, though not where users build.
NVCC_FLAGS ?= -Werror all-warnings

BIN := $(VENV)/bin
# What today's torch for CUDA comes with: tests/ptx executes what it compiles, too.
OTHER_TRITON := $(VENV)/other-triton
INSTALLED := $(VENV)/installed.stamp
BUILT := $(VENV)/built.stamp
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.DEFAULT_GOAL := help
.PHONY: help demo test lint build bench gpu clean

help:
	@echo "make demo    train a LadaGAN on handwritten digits into $(RUN), or go on with it, and judge it"
	@echo "make test    lint, then the whole test suite"
	@echo "make lint    ruff and mypy: rules, format and types"
	@echo "make build   compile the kernels into this checkout"
	@echo "make bench   time every suite by pytest-benchmark, on a machine with nothing else to do"
	@echo "make gpu     with PYTHON as it is, nothing fetched: build, judge each kernel, run the GPU's tests, take its figures"
	@echo "             into OUT=$(OUT); STAGES=build,tests or STAGES=figures,sanitizer for half of it;"
	@echo "             DRY=1 rehearses without a GPU"
	@echo "make clean   delete what was built; $(VENV) and runs/ stay"
	@echo
	@echo "PYTHON=$(PYTHON)          the interpreter that $(VENV) is made with, 3.10 or later"
	@echo "TORCH_INDEX=            an index to take torch from, for the first run: PyPI's torch carries"
	@echo "                        CUDA's libraries, that of https://download.pytorch.org/whl/cpu does not"
	@echo "PYTEST_ARGS=            more arguments for pytest in make test"
	@echo "BENCH_ARGS=             and in make bench: --tiny for a rehearsal, -k 'ops and float32' for some of it"

# A run that was interrupted goes on; one that is complete is only judged again.
demo: $(BUILT)
	@if [ -e $(RUN)/last_ckpt.pt ] || [ -e $(RUN)/previous_ckpt.pt ]; then \
		echo "going on with $(RUN); delete that folder to start anew"; \
		$(BIN)/python -m lada_kernels.train --resume $(RUN); \
	else \
		$(BIN)/python -m lada_kernels.train --preset digits --run.out $(RUN); \
	fi
	@$(BIN)/python -m lada_kernels.evaluate $(RUN)
	@echo "the digits it draws: $$(ls $(RUN)/grids/*.png | tail -n 1)"

# Threads that wait asleep: on a busy machine, spinning ones slow the many small tests down tenfold and more.
test: lint $(BUILT)
	PYTHONPATH=tests $(BIN)/python -m ptx.build
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

build: $(BUILT)

bench: $(BUILT)
	$(BIN)/python -m pytest benchmarks/ --benchmark-only $(BENCH_ARGS)

gpu:
	$(PYTHON) -m benchmarks.gpu --out $(OUT) $(if $(STAGES),--stages $(STAGES)) $(if $(DRY),--dry)

# compat puts the checkout on sys.path; the other editable mode also answers for copies of the package found elsewhere.
$(BUILT): $(INSTALLED) $(SOURCES)
	NVCC_APPEND_FLAGS="$(NVCC_FLAGS)" $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --config-settings editable_mode=compat --editable .
	$(BIN)/python -m lada_kernels.info
	@touch $@

$(INSTALLED): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit(f"{sys.executable} is Python {sys.version.split()[0]}; set PYTHON to 3.10 or later")'
	@echo "installing requirements-dev.txt into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(OTHER_TRITON) triton==3.6.0
	@touch $@

clean:
	rm -rf build dist *.egg-info lada_kernels/_native*.so $(BUILT)
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
