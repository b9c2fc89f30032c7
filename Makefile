# make demo | test | test-slow | test-aarch64 | fuzz | wheels | lint | docs | clean; each makes .venv first if it is not there.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,docs,lce
BIN := $(VENV)/bin
RUN := runs/demo
MODEL := $(RUN)/resnet18_1w1a
FUZZ_SECONDS ?= 600

# The install is editable: changes of Python files are live, C++ and a module that becomes a package need a new install.
CPP := $(shell find kernels/cpp -type f)
PACKAGES := $(shell find bnnedge kernels export benchmarks -name __init__.py)
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-aarch64 fuzz wheels lint docs clean

help:
	@echo "make demo       train, export, evaluate, benchmark and report a small network (minutes, CPU)"
	@echo "make test       quick tests with coverage"
	@echo "make test-slow  the long tests"
	@echo "make test-aarch64  kernels and plug-ins on emulated AArch64 (needs g++-aarch64-linux-gnu, qemu-user-static)"
	@echo "make fuzz       FUZZ_SECONDS=600 of fuzzing each plug-in, with sanitizers (needs clang)"
	@echo "make wheels     x86-64 and AArch64 wheels for any Linux since 2014 into dist/, tested (needs qemu-user-static)"
	@echo "make lint       ruff, clang-format and mypy"
	@echo "make docs       the documentation, into build/site"
	@echo "make clean      remove the environment, caches and build products (runs/ stays)"

$(INSTALLED): pyproject.toml $(CPP) $(PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.1"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	rm -rf $(RUN)
	$(BIN)/bnnedge train --method rbnn --model resnet18_1w1a --dataset digits --image-size 16 \
		--epochs 15 --batch-size 64 --lr 0.05 --warm-up 3 --out $(RUN)
	$(BIN)/bnnedge export $(RUN) --target onnx -o $(MODEL).onnx
	$(BIN)/bnnedge export $(RUN) --target lce -o $(MODEL).tflite
	$(BIN)/bnnedge evaluate $(RUN)
	$(BIN)/bnnedge evaluate $(MODEL).onnx
	$(BIN)/bnnedge evaluate $(MODEL).tflite
	$(BIN)/bnnedge bench $(MODEL).onnx $(MODEL).tflite --baseline --data digits --json $(RUN)/bench.jsonl
	$(BIN)/bnnedge report $(RUN) -o $(RUN)/report.png

# A process a core, each of one thread; files stay whole, as their tests share what they train and build, and in order,
# as those with few tests are the longest and must not be last.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile \
		--no-loadscope-reorder --durations 15 --cov --cov-report=term-missing:skip-covered

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-aarch64: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow or not slow" tests/aarch64

wheels: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS),wheels]"
	PATH="$(abspath $(BIN)):$$PATH" PYTHON="$(abspath $(BIN))/python" .ci/wheels dist
	BNNEDGE_WHEELS=dist $(BIN)/python -m pytest -m slow tests/test_wheels.py tests/aarch64 -k wheel

fuzz: $(INSTALLED)
	PATH="$(abspath $(BIN)):$$PATH" BNNEDGE_FUZZ_SECONDS=$(FUZZ_SECONDS) \
		$(BIN)/python -m pytest -m slow tests/kernels/test_cpp_programs.py -k fuzz

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.cc %.h,$(CPP))
	$(BIN)/mypy

# Strict: a page without a place in the navigation, a broken link or an unknown name ends it, as does anything that the
# site would load from the network.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean --quiet

clean:
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
