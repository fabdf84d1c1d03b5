# Needs only make and Python 3.11 to 3.13; everything else goes into .venv.
# Another Python than `python3`: make install PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-slurm lint bench results lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: .venv/installed ## make .venv with the locked versions and lmlab itself

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("lmlab needs Python 3.11 to 3.13, $(PYTHON) is %d.%d: make install PYTHON=python3.12" % v[:2])'
	@echo "installing into .venv: about a minute"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: install ## train a small GPT for two minutes, sample from it, draw its figures
	$(BIN)/lmlab train --config=experiments/gpt_char.py:demo --workdir=$(DEMO)
	$(BIN)/lmlab sample --workdir=$(DEMO) --prompt="The " --max_tokens=300
	$(BIN)/lmlab figures --workdir=$(DEMO)
	@echo
	@echo "The run is in $(DEMO), its figures in $(DEMO)/figures. To try next:"
	@echo "  $(BIN)/lmlab list"
	@echo "  $(BIN)/lmlab sample --workdir=$(DEMO) --prompt=\"Once \" --temperature=0.5"
	@echo "  $(BIN)/lmlab train --config=experiments/gpt_char.py:demo --config.optimizer.learning_rate=0.003 --workdir=runs/faster"

test: install ## the quick tests
	$(BIN)/python -m pytest -m "not slow" --numprocesses=logical --maxprocesses=8 --dist=loadgroup

test-all: install ## every test
	$(BIN)/python -m pytest

test-slurm: install ## sweeps on a real Slurm, which is installed, started and stopped: root, Debian or Ubuntu
	@$(BIN)/python -c "import submitit" 2>/dev/null || $(PIP) install "submitit>=1.5.3"
	tests/sweeps/one_machine_slurm.sh $(BIN)/python -m pytest tests/sweeps/test_slurm.py

lint: install ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: install ## speed beside PyTorch and transformers, in turns: half an hour on a quiet machine
	@$(BIN)/python -c "import torch, transformers" 2>/dev/null || $(PIP) install torch==2.13.0 transformers
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks startup
	$(BIN)/python -m benchmarks spine
	$(BIN)/python -m benchmarks scaling

results: install ## remake README's tables
	$(BIN)/python -m lmlab.evaluation.results

lock: ## remake requirements.lock from pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) install uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --extra test pyproject.toml -o requirements.lock

clean: ## remove .venv, builds and caches; runs stay
	rm -rf .venv build lmlab.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
