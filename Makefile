# `make demo` and `make test` set up what they need; `make check` is what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types format clean kill-campaign kill-training bad-input-campaign sanitize

demo: $(READY)
	$(BIN)/mambalab demo

test: $(READY)
	$(BIN)/python -m pytest

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) build/ns/mambalab
	$(BIN)/pyright

# 50 SIGKILLs and a handful of full disks; a few minutes on a quiet machine.
kill-campaign: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_campaign.py --kills 50 --seed 0 --out reports/results/kill-campaign

# 10 SIGKILLs of trainings; a few minutes.
kill-training: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill_training.py --kills 10 --seed 0 --out reports/results/kill-training

# Needs an NVIDIA GPU and compute-sanitizer, which comes with the CUDA toolkit; racecheck takes minutes.
SANITIZED ?= $(BIN)/python tests/sanitize_gpu.py
sanitize:
	compute-sanitizer --tool memcheck --error-exitcode 1 $(SANITIZED)
	compute-sanitizer --tool racecheck --error-exitcode 1 $(SANITIZED)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and pinned: an open range asked for by another package would bring the newest CUDA build.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mambalab needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,peers]'
	touch $@

# pyright follows the namespace through this link.
build/ns/mambalab:
	mkdir -p build/ns
	ln -sfn ../.. $@

# Hundreds of bad inputs, each in a process that may die of it; fails where one is neither right nor one clear line.
bad-input-campaign: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore -m bad_input --out reports/results/bad-input

clean:
	rm -rf build dist *.egg-info
