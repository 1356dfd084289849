# Everything a newcomer types. Each target first sets up .venv; nothing but python3 (3.11 or 3.12), pip and make is needed.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help reproduce test test-notebooks test-python site readme lab bench export lock clean

PAPER ?=#        one or more papers, e.g. PAPER=offline; empty = all
SCALE ?= laptop# smoke, laptop or paper
FRESH ?=#        FRESH=1 trains everything again instead of reading the record
JOBS  ?= $(if $(FRESH),1,2)# notebooks at once; each trains on all cores, so one is enough when there is much to train

PYTHON ?= $(shell for p in python3 python3.11 python3.12; do $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
READY := .venv/.ready
BIN := .venv/bin
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'
	@echo "  variables: PAPER=offline  SCALE=smoke|laptop|paper  JOBS=2  FRESH=1"

$(READY): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "rlpapers needs Python 3.11 or 3.12 (python3 is $$(python3 -V 2>&1)). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) -V): a few minutes, once"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; echo "python3 -m venv failed: install your system's venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

reproduce: $(READY) ## regenerate every figure and table, then train one run per paper again and compare
	@status=0; \
	$(BIN)/rlpapers reproduce $(PAPER) --scale $(SCALE) --jobs $(JOBS) $(if $(FRESH),--fresh) || status=$$?; \
	$(BIN)/rlpapers audit $(PAPER) --cheapest || status=$$?; \
	exit $$status

test: $(READY) ## all three rings: cells of the teaching notebooks, pytest, experiment notebooks at smoke scale
	@$(MAKE) --no-print-directory --keep-going test-notebooks test-python

# nbdev_test has no time limit of its own; --do_print tells which notebook was running. The 1x notebooks are run by papermill, from tests/.
test-notebooks: $(READY)
	@echo "Ring 1: the test cells of the teaching notebooks"
	@for folder in $(or $(addprefix nbs/,$(PAPER)),nbs); do \
	  $(ONE_THREAD) timeout 900 $(BIN)/nbdev_test --path $$folder --skip_file_re '^([_.]|1[0-9]_)' --n_workers 2 --do_print --timing \
	    || { echo "A test cell in $$folder failed, or all of them took longer than 15 minutes" >&2; exit 1; }; \
	done

test-python: $(READY)
	@echo "Rings 2 and 3: tests/, which also runs every experiment notebook at smoke scale"
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 --dist loadgroup --durations 10 tests

site: $(READY) ## the website, in _docs/
	@$(BIN)/rlpapers site

readme: $(READY) ## README.md from nbs/index.ipynb
	@$(BIN)/python docs/readme.py

lab: $(READY) ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab nbs

bench: $(READY) ## speed of the core and of stacked training, with the allocator settings that the grid gives its workers
	@for script in benchmarks/[a-z]*.py; do $(ONE_THREAD) MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824 $(BIN)/python $$script; done

export: $(READY) ## write rlpapers/ from the notebooks, and clean them
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean

lock: $(READY) ## write requirements.lock from what .venv holds
	@$(BIN)/python .ci/lock.py

clean: ## remove what can be made again, except runs/
	@rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
