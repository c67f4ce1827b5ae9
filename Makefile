# One line of doing for each target; the logic lives in e2d_lib.
.DEFAULT_GOAL := help
PYTHON ?= python3
PORT ?= 8888
IP ?= 127.0.0.1
BIN := .venv/bin
READY := .venv/.ready
# What every kernel of the environment runs when it starts, and what git stores of a notebook. A notebook's cells, and
# nothing that JupyterLab writes when it opens, runs or saves one; without the environment git stores it as it is.
KERNEL := c.InteractiveShellApp.extensions = ["e2d_lib.study.lab"]
INFO := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
CLEAN := $(BIN)/nbstripout --extra-keys "$(INFO:%=metadata.language_info.%)"

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet "$$(grep '^uv==' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	mkdir -p .venv/etc/ipython && echo '$(KERNEL)' > .venv/etc/ipython/ipython_kernel_config.py
	@$(MAKE) --no-print-directory filter
	touch $(READY)

env: $(READY)  ## the environment alone: .venv, from requirements.lock

filter:  ## have git store notebooks without outputs, where there is a git checkout (make env does it too)
	@test ! -e .git || git config filter.notebooks.clean '$(CLEAN)'
	@test ! -e .git || git -c filter.notebooks.clean=cat update-index -q --refresh || true  # or the next status filters all

study: $(READY)  ## run the whole study on the embedded data -> results/demo/
	$(BIN)/e2d run --profile demo

test: $(READY)  ## the whole test suite, on all cores
	$(BIN)/python -m pytest -n auto --dist loadgroup

report: $(READY)  ## one page to read of the run -> results/demo/report.html
	$(BIN)/e2d report results/demo

site: $(READY)  ## the reference runs as pages for GitHub Pages -> site/
	$(BIN)/e2d report results/reference --out site/index.html
	$(BIN)/e2d report results/reference-ablation --out site/ablations.html

lab: $(READY)  ## JupyterLab in the same environment; make lab PORT=8890, in a container with IP=0.0.0.0
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab --allow-root --ip=$(IP) --port=$(PORT) --ServerApp.root_dir=. \
		--LabApp.default_url=/lab/tree/notebooks --FileContentsManager.post_save_hook=e2d_lib.study.lab.saved

lint: $(READY)  ## ruff over .py and .ipynb, and nbstripout over notebooks as git would store them
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	for n in notebooks/*.ipynb; do sh -c "$$(git config filter.notebooks.clean || echo cat)" < $$n | $(BIN)/nbstripout --verify || exit; done

lock: $(READY)  ## write requirements.lock anew from pyproject.toml, keeping what still fits
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-header pyproject.toml -o requirements.lock

.PHONY: help env filter study test report site lab lint lock
