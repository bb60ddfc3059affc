# One command for each habit. Everything runs in a virtual environment of its own (.venv).
PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= demo
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
# Waiting threads sleep instead of spinning: on busy cores that is several times faster.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup lint structure test test-slow test-gpu bench-gpu demo clean
help:
	@echo "make demo       the whole pipeline on sample slides: harvest, pre-train, fine-tune, evaluate (10 minutes, CPU)"
	@echo "make test       lint, type check and the tests"
	@echo "make test-slow  the tests that take minutes;  make test-gpu  those that need a CUDA device"
	@echo "make structure  measures of the code's structure and language, with their limits"
	@echo "make bench-gpu  a GPU's speed: training steps, detector, prediction (25 minutes)"
	@echo "make setup      only the virtual environment, in $(VENV)"

setup: $(READY)
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; choose it with: make PYTHON=python3.12"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"; exit 2; }
	$(VENV)/bin/pip install --quiet --editable '.[dev]'
	@touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

structure: setup
	$(PY) -m tests.structure

test: lint
	$(PY) -m pytest -n 2 --dist loadfile

test-slow: setup
	$(PY) -m pytest -m slow --timeout 3600

test-gpu: setup
	@$(PY) -m tests.gpu
	$(PY) -m pytest -m gpu --timeout 3600

# 25 minutes; run again, it goes on where it was interrupted. SHARDS=DIR feeds the steps from shards as well.
bench-gpu: setup
	@$(PY) -m tests.gpu
	$(PY) -m tests.benchmarks.on_gpu $(SHARDS)

# The three stages by their public commands, each reading what the one before it wrote. Run again, it goes on
# where it was interrupted; `make clean` starts from scratch.
demo: setup
	$(PY) -m shared.samples.sample_slides $(DEMO)
	$(PY) -m patch_extraction --wsi-dir $(DEMO)/slides --out $(DEMO)/shards
	$(PY) -m ssl_pretrain mae_demo --shards $(DEMO)/shards --run-dir $(DEMO)/runs/mae --out $(DEMO)/mae.pth
	$(PY) -m finetune demo --init $(DEMO)/mae.pth --data $(DEMO)/tiles --epochs 0 \
	    --run-dir $(DEMO)/runs/untrained --out $(DEMO)/untrained.pth
	$(PY) -m finetune demo --init $(DEMO)/mae.pth --data $(DEMO)/tiles \
	    --run-dir $(DEMO)/runs/finetune --out $(DEMO)/detector.pth
	$(PY) -m finetune.evaluate $(DEMO)/detector.pth --data $(DEMO)/tiles --out $(DEMO)/evaluation \
	    --baseline $(DEMO)/untrained.pth --min-gain 0.7
	@echo
	@echo "The whole pipeline ran. Pictures:"
	@echo "  harvested patches, counted cells marked     $(DEMO)/shards/contact_sheet.png"
	@echo "  masked | reconstructed | original           $(DEMO)/runs/mae/pictures/"
	@echo "  proposals before and after deformation      $(DEMO)/runs/finetune/pictures/"
	@echo "  predicted beside annotated cells            $(DEMO)/evaluation/comparison.png"

clean:
	rm -rf $(VENV) $(DEMO)
