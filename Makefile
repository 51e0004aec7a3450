# Needs make and Python 3.11 or newer; every target sets up what it needs in a virtual environment of its own.
#   make demo                     the first three questions, and one page that answers them
#   make test                     the whole suite, in float64 and in jax's default precision
#   make test PYTHON=python3.13   the same on another Python, with the newest jax that it gets
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV ?= .venv-$(VERSION)
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help demo test check notebooks docs bench clean
help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.core
	@$(BIN)/python -m experiments.demo $(ARGS)

test: $(VENV)/.test
	@NUMDL_TEST_X64=0 $(BIN)/python -m pytest -q -m float32 --durations=0 --durations-min=20 tests
	@$(BIN)/python -m pytest -q $(ARGS) tests

check: $(VENV)/.dev
	@$(BIN)/ruff check numdl experiments tests benchmarks
	@$(BIN)/ruff format --check numdl experiments tests benchmarks
	@$(BIN)/ty check numdl experiments
	@$(MAKE) --no-print-directory test

notebooks: $(VENV)/.test
	@$(BIN)/python notebooks/build.py $(ARGS)

docs: $(VENV)/.docs
	@$(BIN)/sphinx-build -q -W -b html docs site && echo site/index.html

bench: $(VENV)/.bench
	@$(BIN)/python -m benchmarks $(ARGS)

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
