# make setup   everything that the demo and the tests need, in .venv
# make demo    train Pendulum-v1 with PPO, into runs/demo
# make test    the tests: Python, and C++ under the sanitizers; of Ray the core
# make test-ray      all contract tests on a Ray of this machine
# make test-faults   every system call of the engine fails, in every process
# make test-age      the contract on a core with small tables and aged counters
# make test-size     a thousand processes, 2^24 objects, arrays of 5 GB; much memory
# make test-asan     the contract on a core built with AddressSanitizer and UBSan
# make test-tsan     several threads of one driver, on a core built with ThreadSanitizer
# make test-cluster  skate on Ray across three hosts (network namespaces; root)
# make gpu     the tests that need CUDA, where it is; elsewhere says why not
# make check   lint, formatting, types, documents, and the contract tests on
#              every CPython from 3.10 to 3.13 on this machine
# make soak    random graphs under random kills, checked against the inline engine:
#              SECONDS=600, and SEED=... to repeat a run; SOAK='--stops'
# make soak-small    the same on a core with small tables and aged counters
# make bench   skate beside Ray, a process pool and joblib, into benchmarks/results
# make docs    check the links in the documents
# make core    rebuild the C++ core into src/skate
# make clean   remove what these made
#
# PYTHON=...   the Python to make .venv with       PYTEST=...  more pytest arguments

PYTHON ?= python3
PYTEST ?=
SECONDS ?= 600
SOAK ?=
SEED ?= $(shell shuf -i 0-9999 -n 1)
SYSTEM_PATH := $(PATH)
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PIP := $(BIN)/python -m pip install --quiet
BUILD_TOOLS := scikit-build-core nanobind cmake ninja
CORE_TESTS := plain address thread

.PHONY: setup demo test test-ray test-cluster gpu check soak bench docs core clean
.PHONY: soak-small test-faults test-age test-size test-asan test-tsan
.PHONY: test-core $(CORE_TESTS:%=test-core-%) check-pythons

setup: core

# Each stamp is newer than what it was made from, so a second run starts at once.
.venv/made.stamp:
	@PATH='$(SYSTEM_PATH)' command -v $(PYTHON) >/dev/null || { \
	  echo 'make: there is no $(PYTHON). On Debian and Ubuntu:' \
	    'sudo apt-get install python3 python3-venv python3-dev g++' >&2; exit 1; }
	@PATH='$(SYSTEM_PATH)' $(PYTHON) scripts/prerequisites.py
	PATH='$(SYSTEM_PATH)' $(PYTHON) -m venv .venv
	@touch $@

# torch goes first and pinned: a plain `torch` may resolve another, much larger build.
# SKATE_NO_CORE: this installs the metadata and a path to src; `core` builds there.
.venv/installed.stamp: .venv/made.stamp pyproject.toml requirements/dev.txt
	@echo 'Installing what the demo and the tests need into .venv (minutes, once) ...'
	@$(PIP) "$$(grep ^torch== requirements/dev.txt)"
	@$(PIP) $(BUILD_TOOLS) -r requirements/dev.txt
	@SKATE_NO_CORE=1 $(PIP) --no-build-isolation -c requirements/dev.txt \
	  -e '.[dev,jax,ray,rl,serve,tensorflow,train]'
	@touch $@

# tf_keras asks for TensorFlow under another name than the one that is installed.
.venv/bench.stamp: .venv/installed.stamp requirements/bench.txt
	@SKATE_NO_CORE=1 $(PIP) --no-build-isolation \
	  -c requirements/dev.txt -r requirements/bench.txt -e '.[bench]'
	@$(PIP) --no-deps tf_keras==2.21.0
	@touch $@

build/dev/build.ninja: .venv/installed.stamp
	@cmake --fresh -S . -B build/dev -G Ninja -DPython_EXECUTABLE=$(BIN)/python \
	  --log-level=WARNING >/dev/null
	@touch $@

core: build/dev/build.ninja
	@cmake --build build/dev -- --quiet
	@$(BIN)/python -m compileall -q src/skate  # each worker process would do it anew

demo: setup
	@$(BIN)/skate train ppo Pendulum-v1 --out runs/demo --overwrite

# Every test has a time limit of its own; the outer one ends a run that no signal stops.
test: setup test-core
	@timeout --kill-after=30 2700 $(BIN)/python -m pytest $(PYTEST)

test-ray: setup
	@timeout --kill-after=30 3600 $(BIN)/python -m pytest -m ray $(PYTEST)

test-faults: setup
	@SKATE_TEST_FAULTS=all $(BIN)/python -m pytest --timeout 300 \
	  tests/faults/test_failing_calls.py $(PYTEST)

# `-k embedded`: what runs on each engine, on this one.
test-age: setup build/small/python/core.stamp
	@$(SMALL) $(BIN)/python -c 'from skate import _core; assert _core.is_small'
	@$(SMALL) $(BIN)/python -m pytest -p no:cacheprovider \
	  tests/contract tests/property -k embedded $(PYTEST)
	@$(SMALL) $(BIN)/python -m pytest -p no:cacheprovider \
	  tests/faults --deselect tests/faults/test_failing_calls.py $(PYTEST)

test-size: setup
	@SKATE_TEST_SIZE=1 $(BIN)/python -m pytest --timeout 1800 tests/size $(PYTEST)

# Not the process's first library, a sanitizer must be loaded before all others; libstdc++
# with it, or it would not find where exceptions are thrown. Sanitized processes are slow.
SMALL = env PYTHONPATH=$(CURDIR)/build/small/python
SANITIZED = setarch $$(uname -m) -R env PYTHONPATH=$(CURDIR)/build/$(1)/python \
  LD_PRELOAD="$$(g++ -print-file-name=lib$(1).so) $$(g++ -print-file-name=libstdc++.so)"

BUILD_asan := -DSKATE_SANITIZE=address
BUILD_tsan := -DSKATE_SANITIZE=thread
BUILD_small := -DSKATE_SMALL=ON
build/%/python/core.stamp: .venv/installed.stamp FORCE
	@cmake -S . -B build/$* -G Ninja -DPython_EXECUTABLE=$(BIN)/python \
	  $(BUILD_$*) -DSKATE_MODULE_DIR=$(CURDIR)/build/$*/module -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  --log-level=WARNING >/dev/null
	@cmake --build build/$* -- --quiet
	@$(BIN)/python scripts/package_with_core.py build/$*/module build/$*/python
	@touch $@
FORCE:

test-asan: setup build/asan/python/core.stamp
	@ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(call SANITIZED,asan) $(BIN)/python -m pytest --timeout 600 -p no:cacheprovider \
	  tests/contract -k 'embedded and not tensorflow and not jax' $(PYTEST)

test-tsan: setup build/tsan/python/core.stamp
	@TSAN_OPTIONS="halt_on_error=1 exitcode=66 die_after_fork=0 \
	  suppressions=$(CURDIR)/tests/faults/tsan.supp" \
	  $(call SANITIZED,tsan) $(BIN)/python tests/faults/threads.py 20

# Real hosts, in network namespaces: needs root and iproute2, and some minutes.
test-cluster: setup
	@$(BIN)/python -m pytest -m cluster tests/cluster

gpu: setup
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST); \
	else $(BIN)/python -c 'from skate.train.cuda import why_not; \
	  print("make gpu: nothing was run:", why_not())'; fi

test-core: $(CORE_TESTS:%=test-core-%)

# `plain` runs the tests that need real processes; the others find what threads reveal.
$(CORE_TESTS:%=test-core-%): test-core-%: .venv/installed.stamp
	@cmake -S . -B build/core-$* -G Ninja -DSKATE_MODULE=OFF -DSKATE_CORE_TESTS=ON \
	  -DSKATE_SANITIZE=$(filter-out plain,$*) -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  --log-level=WARNING >/dev/null
	@cmake --build build/core-$* -- --quiet
	@ctest --test-dir build/core-$* --output-on-failure

check: setup docs
	ruff check .
	ruff format --check .
	mypy
	@if command -v clang-format >/dev/null; then \
	  clang-format --dry-run -Werror src/*/*.?pp tests/core/*.?pp; \
	else echo 'clang-format is not installed: C++ formatting was not checked'; fi
	@$(MAKE) --no-print-directory check-pythons

check-pythons: setup
	@PATH='$(SYSTEM_PATH)' $(BIN)/python scripts/contract_on_pythons.py

soak: setup
	@$(BIN)/python tests/soak/soak.py --seconds $(SECONDS) --seed $(SEED) $(SOAK)

soak-small: setup build/small/python/core.stamp
	@$(SMALL) $(BIN)/python tests/soak/soak.py --seconds $(SECONDS) --seed $(SEED) $(SOAK)

bench: setup .venv/bench.stamp
	@$(BIN)/python -m benchmarks.engine

docs: .venv/installed.stamp
	@$(BIN)/python scripts/check_links.py

clean:
	rm -rf build dist runs .venv src/skate/_core.*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
