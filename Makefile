# Needs make and Python 3.11 or newer; every target sets up what it needs in a virtual environment of its own.
#   make demo                     three questions answered, and a network that does not train examined and cured
#   make test                     the suite, in float64 and (its core) in jax's default precision
#   make test-all                 with the tests that take minutes, every file in both precisions
#   make test PYTHON=python3.13   the same on another Python, with the newest jax that it gets
#   make test-stacks              the oldest versions that pyproject.toml promises, the usual ones, and NEWEST's (python3.13)
#   make check                    linter and types, then test-all
#   make docs                     build the site, which opens without a network: site/index.html
#   make notebooks                execute the notebooks and write them anew
#   make verification             measure every figure of docs/verification.md on this Python (PYTHON=... for the other)
#   make verification-stacks      both columns of it: this Python, then NEWEST's (ARGS=--missing: what has no figures yet)
#   make bench                    numdl beside its peers, interleaved; make bench-peers: environments for torch and an old jax
#   make bench-gpu                large networks and all precisions on an accelerator; without one it says so and passes
#   make mutants                  plant faults in the mathematics, one at a time: each must be caught
PYTHON ?= python3
NEWEST ?= python3.13
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
ARGS ?=
TORCH ?= torch
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal
# What a float32 user meets first: the second pass of `make test` (`make test-all` takes every file).
CORE := tests/test_trees.py tests/test_statistics.py tests/networks/test_core.py tests/networks/test_dense.py \
	tests/networks/test_initializers.py tests/theory/test_propagation.py tests/theory/test_jacobian.py \
	tests/analysis/test_propagation.py

.PHONY: help demo test test-all verification verification-stacks mutants test-oldest test-stacks check notebooks docs bench bench-gpu bench-peers clean
help:
	@sed -n '1,14s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.core
	@$(BIN)/python -m experiments.demo $(ARGS)

test: $(VENV)/.test
	@NUMDL_TEST_X64=0 $(PYTEST) -m "float32 and not slow" $(CORE) || failed=1; \
		$(PYTEST) -m "not slow" $(ARGS) tests && exit $${failed:-0}

test-all: $(VENV)/.test
	@NUMDL_TEST_X64=0 $(PYTEST) -m float32 tests || failed=1; $(PYTEST) $(ARGS) tests && exit $${failed:-0}

# jax 0.10 is the last for Python 3.11, so PYTHON must be one that the oldest wheels know.
test-oldest: .venv-oldest/.oldest
	@NUMDL_TEST_CACHE=.cache/oldest $(MAKE) --no-print-directory test VENV=.venv-oldest

test-stacks: test-oldest
	@$(MAKE) --no-print-directory test
	@$(MAKE) --no-print-directory test PYTHON=$(NEWEST)

verification: $(VENV)/.test
	@$(BIN)/python -m tests.verification $(ARGS)

verification-stacks:
	@for python in $(PYTHON) $(NEWEST); do $(MAKE) --no-print-directory verification PYTHON=$$python || failed=1; done; exit $${failed:-0}

mutants: $(VENV)/.test
	@$(BIN)/python -m tests.verification.mutants $(ARGS)

check: $(VENV)/.dev
	@$(BIN)/ruff check numdl experiments tests benchmarks
	@$(BIN)/ruff format --check numdl experiments tests benchmarks
	@$(BIN)/ty check numdl experiments
	@$(MAKE) --no-print-directory test-all

notebooks: $(VENV)/.test
	@$(BIN)/python notebooks/build.py $(ARGS)

docs: $(VENV)/.docs
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs site && echo site/index.html

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks $(ARGS)

# jax for the card beside numdl: ARGS="--json rows.json"; without a card it says so.
bench-gpu: $(VENV)/.bench
	@$(BIN)/python -m benchmarks gpu $(ARGS)

bench-peers: .venv-bench-torch/.done .venv-bench-tangents/.done

# Without dependencies of their own that the benchmark does not use (torchvision, TensorFlow). A peer that fails is a row.
.venv-bench-torch/.done:
	@$(PYTHON) -m venv --clear .venv-bench-torch
	@.venv-bench-torch/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH) numpy scipy einops tqdm setuptools
	@for peer in torchdiffeq pyhessian curvlinops-for-pytorch linear_operator jaxtyping wadler_lindig backpack-for-pytorch unfoldnd einconv; do \
		.venv-bench-torch/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$peer || echo "$$peer: not installed"; done
	@touch $@

# neural-tangents needs jax 0.4.30, which is for Python 3.9 to 3.12.
.venv-bench-tangents/.done:
	@$(PYTHON) -m venv --clear .venv-bench-tangents
	@.venv-bench-tangents/bin/python -m pip install --quiet --disable-pip-version-check --no-deps neural-tangents==0.6.5
	@.venv-bench-tangents/bin/python -m pip install --quiet --disable-pip-version-check jax==0.4.30 jaxlib==0.4.30 'numpy<2' 'scipy<1.13' frozendict absl-py typing_extensions
	@touch $@

clean:
	rm -rf .venv-* .cache site build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"numdl needs Python 3.11 or newer; $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no venv module: on Debian, apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

define install
	@echo "installing numdl[$(1)] into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
	@touch $@
endef

.venv-oldest/.oldest: pyproject.toml .ci/oldest.py
	@$(PYTHON) -m venv --clear .venv-oldest
	@$(PYTHON) .ci/oldest.py > .venv-oldest/constraints.txt
	@echo "installing the oldest versions that pyproject.toml promises into .venv-oldest"
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e '.[data,test,interop]'
	@touch $@ .venv-oldest/.test

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,data)
$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,data$(,)test$(,)interop)
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,data$(,)test$(,)interop$(,)dev)
	@touch $(VENV)/.test
$(VENV)/.docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,data$(,)docs)
$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,data$(,)test$(,)bench)

, := ,
