# make demo                     install and open the first notebook in JupyterLab
# make demo ARGS=--no-browser   the same, printing the address instead
# make test                     install and check everything
# make unit                     the fast tests alone: less than three minutes on two cores; JOBS=4 for four
# make slow                     those that take more than ten seconds each
# make notebooks, make browser  the notebooks; the app in a real JupyterLab with Chromium
# make lint, types, contracts   style, mypy, and which module may import which
# make bench                    waiting times and memory, against their targets
# make test-fullsize            a random Versatile Diffusion of the published size: 16 GB of memory, 10 GB of disk, some minutes
SHELL := /bin/sh
.DELETE_ON_ERROR:
.NOTPARALLEL: # the browser tests look at the clock, and want the machine for themselves
.PHONY: help demo test lint types contracts unit slow test-fullsize notebooks browser chromium bench clean

VENV  := .venv
BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --disable-pip-version-check --quiet
PINS  := pyproject.toml constraints.txt
ARGS  ?=
JOBS  ?= 2

help:
	@sed -n '1,/^SHELL/s/^# //p' Makefile

demo: $(VENV)/.ready
	$(BIN)/havir demo $(ARGS)

test: lint types contracts chromium unit slow notebooks browser

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .

types: $(VENV)/.ready-test
	$(BIN)/mypy

contracts: $(VENV)/.ready-test
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.ready-test
	$(BIN)/havir demo --build-only
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not browser and not fullsize" tests $(ARGS)

slow: $(VENV)/.ready-test
	$(BIN)/havir demo --build-only
	$(BIN)/python -m pytest -m slow tests $(ARGS)

test-fullsize: $(VENV)/.ready-test
	$(BIN)/python -m pytest -m fullsize -s tests/test_full_size.py $(ARGS)

notebooks: $(VENV)/.ready-test
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks $(ARGS)

browser: chromium
	$(BIN)/python -m pytest -m browser tests $(ARGS)

bench: $(VENV)/.ready-test
	$(BIN)/python benchmarks/first_light.py $(ARGS)

# A Chromium for the browser tests: the system's; else Debian's package, as root; else Playwright's own.
chromium: $(VENV)/.ready-test
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Chromium from the distribution"; \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium >/dev/null && exit 0; \
	fi; \
	echo "installing Playwright's Chromium"; $(BIN)/python -m playwright install chromium

# The stamps are renewed when a dependency changes; the package itself is installed in place and needs no renewal.
$(VENV)/.ready: $(PINS) | $(BIN)/python
	@echo "installing havir_explorer into $(VENV) (a few minutes the first time)"
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.ready-test: $(PINS) | $(BIN)/python
	@echo "installing havir_explorer and its test tools into $(VENV) (a few minutes the first time)"
	$(PIP) --constraint constraints.txt --editable '.[test]'
	@touch $(VENV)/.ready $@

$(BIN)/python:
	@for python in python3.11 python3.12 python3.13 python3; do \
	    $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && exec $$python -m venv $(VENV); \
	done; \
	echo "havir_explorer needs Python 3.11 or newer with its venv module; none of python3.11, python3.12, python3.13 and python3 is one" >&2; exit 1

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache test-artefacts
