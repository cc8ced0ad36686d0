# On a machine with Python 3.11 or later, `make demo` and `make test` install what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Tests of the real MNIST look here; without it they are skipped.
ifneq ($(wildcard ../shared/data),)
export ELLZERO_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help demo test slow docs lint format bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1:\t\2/p' $(MAKEFILE_LIST)

demo: $(VENV)/installed-data ## train, prune and fine-tune a small network on the digits that come along
	$(BIN)/ellzero run

# Two processes with one torch thread each: more threads would fight for the same cores. The tests
# of a file stay in one process, so that what they share is made once.
test: lint ## lint, type check and all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

slow: $(VENV)/installed-dev ## the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2 --dist loadfile

docs: $(VENV)/installed-docs ## the documentation as a site, in build/docs; nothing is fetched, warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -aW --keep-going -d build/doctrees docs build/docs

lint: $(VENV)/installed-dev ## ruff, the direction of imports, and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright

format: $(VENV)/installed-dev ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

BENCHMARKS := startup pruning training "step lenet-300-100" sparse_layer whole_job

bench: $(VENV)/installed-bench $(VENV)/installed-data ## figures of docs/performance.md; ten minutes on an idle machine
	@for benchmark in $(BENCHMARKS); do set -- $$benchmark; name=$$1; shift; \
		echo "== $$name $$*"; $(BIN)/python benchmarks/$$name.py "$$@" || exit 1; done

clean: ## remove the environment, builds and caches; runs stay
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and by its exact version: a range may resolve to a much larger build.
$(VENV)/installed-torch: constraints.txt | $(BIN)/python
	$(BIN)/pip install "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	@touch $@

$(VENV)/installed-%: $(VENV)/installed-torch pyproject.toml
	$(BIN)/pip install -e '.[$*]' -c constraints.txt
	@touch $@
