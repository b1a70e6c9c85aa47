# `make demo` and `make test` do everything a fresh machine needs: virtual environment, pinned
# packages (CUDA torch where a GPU is found, CPU torch elsewhere), the C++ core.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
CONSTRAINTS := constraints/$(if $(GPU),cuda,cpu).txt
EXTRAS := demo,dali,triton,train,webdataset,remote,dev
BUILD_TOOLS := scikit-build-core pybind11 cmake ninja
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c $(CONSTRAINTS)
# The extension is rebuilt when any of these changes.
CORE := pyproject.toml csrc/CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.hpp csrc/*/*.cpp csrc/*/*.hpp)
# An editable install maps each module to its file: a module that comes or goes needs a new one.
MODULES := $(shell find omr_io kernels -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
BUILT := $(VENV)/.built-$(MODULES)

DEMO := runs/demo

.PHONY: help demo data test test-slow lint format bench gpu-bench fuzz clean check-system

help:
	@echo "make demo      nothing to a trained, evaluated model in about 10 minutes on 2 CPU cores"
	@echo "make test      the fast tests        make test-slow  the slow ones"
	@echo "make lint      ruff and mypy         make bench     benchmarks, JSON in benchmarks/results"
	@echo "make gpu-bench  on a GPU: its tests, then benchmarks"
	@echo "make fuzz      the tokenizer's core under sanitizers, SECONDS=600"

check-system:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing. Install it: apt-get install python3 python3-venv python3-dev"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or later is needed, $(PYTHON) is older. Choose another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: Python's venv module is missing. Install it: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "error: Python's C headers are missing. Install them: apt-get install python3-dev"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || { echo "error: a C++20 compiler is missing. Install it: apt-get install g++"; exit 1; }

$(VENV)/.packages: constraints/cpu.txt constraints/cuda.txt pyproject.toml | check-system
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages of $(CONSTRAINTS) into $(VENV) (once, about 600 MB for the CPU)"
	@$(PIP) $(BUILD_TOOLS)
	@$(PIP) --no-build-isolation --editable '.[$(EXTRAS)]'
	@rm -f $(VENV)/.built-*
	@touch $@ $(BUILT)

$(BUILT): $(CORE) | $(VENV)/.packages
	@echo "building the C++ core"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@rm -f $(VENV)/.built-*
	@touch $@

.PHONY: install
install: $(VENV)/.packages $(BUILT)

data/demo.parquet: | install
	@$(BIN)/omr-io demo-corpus --train-rows 1900 $@

# The 16-bit images of the demo corpus hold 0 to 255, so nothing of them is cut off.
data/demo-shards/manifest.json: data/demo.parquet
	@$(BIN)/omr-io convert --overwrite --take 16-bit data/demo.parquet data/demo-shards
	@$(BIN)/omr-io verify data/demo-shards

data/demo-test-shards/manifest.json: data/demo.parquet
	@$(BIN)/omr-io convert --overwrite --take 16-bit --split test data/demo-test.parquet data/demo-test-shards
	@$(BIN)/omr-io verify data/demo-test-shards

data: data/demo-shards/manifest.json data/demo-test-shards/manifest.json

demo: data
	@$(BIN)/python train_example.py --config recipes/demo.yaml --overwrite

# Two processes, one thread each: a laptop's two cores, and the tests' own threads stay honest.
PYTEST := OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2

test: install
	@$(PYTEST)

test-slow: install
	@$(PYTEST) -m "slow and not gpu"

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: data
	@$(BIN)/python -m benchmarks.run

# On a machine with an NVIDIA GPU: the tests marked gpu, then benchmarks/results/gpu-*.json.
gpu-bench: install
	@$(BIN)/python -m benchmarks.gpu

# An input that breaks something is kept in build/fuzz/crash-input.bin.
SECONDS ?= 600
SEED ?= $(shell date +%s)
fuzz: install
	@$(BIN)/cmake -S csrc -B build/fuzz -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DOMR_FUZZ=ON >/dev/null
	@$(BIN)/cmake --build build/fuzz
	@echo "fuzzing for $(SECONDS) s, seed $(SEED)"
	@cd build/fuzz && fuzz/fuzz_tokenizer $(SECONDS) $(SEED)

clean:
	rm -rf build data runs .mypy_cache .ruff_cache .pytest_cache
