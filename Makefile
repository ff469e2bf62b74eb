# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python >= 3.11.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: env demo test test-slow gpu docs lint bench clean

env: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "robopolicy needs Python >= 3.11, which was not found; install one, or run make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) install $$(grep '^torch==' constraints.txt)
	$(PIP) install -c constraints.txt -e '.[all]'
	@touch $@

demo: env  ## pixels and instructions to a closed-loop success rate, on the CPU
	$(BIN)/python eval/demo.py --run-dir runs/demo

test: env  ## no network, no GPU, no display; 6 minutes on 2 cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: env  ## full counts, and everything that builds another environment
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not gpu' --timeout 3600

gpu: env  ## on a machine with a GPU: its tests, then every benchmark that uses it; goes through to the end, then says what failed
	$(BIN)/python eval/gpu.py --json runs/gpu.json

docs: env  ## the pages of docs/ as a site, without network: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: env
	$(BIN)/python .ci/plain_words.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: env  ## every benchmark, one after another; each prints a table with its peer beside us
	set -e; for bench in eval/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench; done

clean:
	rm -rf .venv runs build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
