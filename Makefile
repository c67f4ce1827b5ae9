# One line of doing for each target; the logic lives in e2d_lib.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet "$$(grep '^uv==' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(READY)

env: $(READY)  ## the environment alone: .venv, from requirements.lock

study: $(READY)  ## run the whole study on the embedded data -> results/demo/
	$(BIN)/e2d run --profile demo

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest

lab: $(READY)  ## JupyterLab in the same environment
	$(BIN)/jupyter lab notebooks

lint: $(READY)  ## ruff and nbstripout, over .py and .ipynb
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/nbstripout --verify notebooks/*.ipynb

lock: $(READY)  ## write requirements.lock anew from pyproject.toml, keeping what still fits
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-header pyproject.toml -o requirements.lock

.PHONY: help env study test lab lint lock
