# demo, test, bench, docs, notebooks, lint, clean. Each installs what it needs into .venv first; nothing else to do on a fresh clone.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet --quiet --constraint constraints.txt
OUT    ?= out/demo
# Test processes, one thread each; on machines with more than two cores set WORKERS.
WORKERS ?= 2
TESTS  ?= tests

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev chromium demo test bench lint format docs notebooks clean

# The embedded models are small: a second thread costs more than it brings, and on a busy machine very much more.
SMALL := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

# Without byte code, importing torch and transformers takes many times longer.
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_DISABLE_TELEMETRY := 1
export WANDB_MODE := disabled
# Pyright comes complete in its wheels; without this it would ask npm for a newer one.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:
	@echo "make demo       run the main job on the embedded model; leaves a report under $(OUT)"
	@echo "make test       the whole test suite (WORKERS=$(WORKERS), TESTS=$(TESTS))"
	@echo "make bench      time the prefix engine against other tools, patching against plain hooks; minutes"
	@echo "make lint       ruff and pyright"
	@echo "make format     let ruff mend what it can"
	@echo "make notebooks  execute the tutorials into build/tutorials"
	@echo "make docs       the documentation, into docs/_build/html"
	@echo "make clean      remove everything that make built, .venv excepted"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmlens needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The stamps say that .venv holds what pyproject.toml and constraints.txt ask for.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing mmlens into $(VENV) (a few minutes the first time) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the test, lint and docs extras into $(VENV) ..."
	@$(PIP) --editable '.[test,lint,docs]'
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The browser tests need a Chromium. Where there is none and we may install one, do; elsewhere the tests say what is missing.
chromium:
	@if ! command -v chromium chromium-browser google-chrome >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "Installing chromium ..."; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	fi

demo: $(VENV)/.installed
	$(SMALL) $(BIN)/mmlens demo --out $(OUT)
	@echo "Report:"; find $(OUT) -name '*.html' -exec realpath {} +

test: $(VENV)/.installed-dev chromium
	$(SMALL) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS)

# Every benchmark runs, whatever became of those before it; the target fails where one missed its requirement.
bench: $(VENV)/.installed-dev
	@status=0; run() { echo; echo "$$*"; $(BIN)/python tests/benchmarks/"$$@" || status=1; }; \
	run bench_engine.py $$(command -v c++ g++ clang++ >/dev/null && echo --compile); \
	run bench_peers.py; \
	run bench_patching.py; \
	run bench_scaling.py --quick; \
	run bench_mask_memory.py --quick; \
	exit $$status

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tutorials are kept as py:percent scripts; here each becomes a notebook and is executed. A failing cell fails the target.
TUTORIALS := $(wildcard tutorials/[0-9]*.py)
NOTEBOOKS := $(TUTORIALS:tutorials/%.py=build/tutorials/%.ipynb)
SOURCES   := $(shell find mmlens -name '*.py' 2>/dev/null)

build/tutorials/%.ipynb: tutorials/%.py $(SOURCES) $(VENV)/.installed-dev
	@mkdir -p build/tutorials
	@echo "Executing $< ..."
	@$(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --output build/tutorials/$*.draft.ipynb $<
	@cd build/tutorials && $(SMALL) PYTHONWARNINGS='ignore:IProgress not found' \
		PLOTLY_RENDERER=plotly_mimetype+notebook \
		../../$(BIN)/jupyter-execute --timeout=600 --output=$*.ipynb $*.draft.ipynb
	@rm build/tutorials/$*.draft.ipynb

notebooks: $(NOTEBOOKS)

docs: $(VENV)/.installed-dev notebooks
	@rm -rf docs/tutorials && mkdir -p docs/tutorials
	@if [ -n "$(NOTEBOOKS)" ]; then cp $(NOTEBOOKS) docs/tutorials/; fi
	$(SMALL) $(BIN)/python -m sphinx -W --keep-going -q -E -b html docs docs/_build/html
	@echo "Documentation: docs/_build/html/index.html"

clean:
	rm -rf build dist out/demo docs/_build docs/tutorials .pytest_cache .ruff_cache .hypothesis .coverage
	find mmlens tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
