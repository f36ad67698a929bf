# The two commands of the README are `make demo` and `make test`; each sets up what it needs.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# On a machine without a GPU, point this at PyTorch's CPU wheel index (see "Installing" in the
# README): the default build for Linux brings gigabytes of CUDA libraries.
TORCH_INDEX_URL ?=
DEMO_ARGS ?= --out demo-out
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo node test lint wheel clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## Make .venv with everything in it

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Nirvana needs Python 3.11 or later; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install  ## Start everything, run a prompt list through the queue, show what was saved
	$(BIN)/nirvana demo $(DEMO_ARGS)

node: tests/acceptance/node/node_modules/installed  ## Get the JavaScript clients that the tests use

tests/acceptance/node/node_modules/installed: tests/acceptance/node/package-lock.json
	@command -v npm >/dev/null || { echo "the tests of JavaScript clients need Node.js 18 or later, with npm" >&2; exit 1; }
	cd tests/acceptance/node && npm ci --no-progress
	@touch $@

test: install node  ## Run the tests, against the real services
	$(BIN)/pytest $(TEST_ARGS)

lint: install  ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: install  ## Build the distribution
	$(BIN)/python -m build --outdir dist

clean:  ## Remove .venv and what was built
	rm -rf $(VENV) dist build *.egg-info demo-out tests/acceptance/node/node_modules
