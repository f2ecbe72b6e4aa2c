# make demo    train and evaluate the whole system on the built-in mini-wiki
# make wiki data=FOLDER   the same comparison on real text (python -m rag.wiki --help)
# make test    the quick tests, offline
# make lint    style, format and types
# make docs    the site of docs/, into outputs/site; a broken link is an error
# make clean   remove the environment and caches; what was trained stays
#
# Each makes .venv first if it is missing. PYTHON=python3.13 chooses the interpreter it is made with.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo wiki test lint docs clean

demo: $(VENV)/installed
	@$(VENV)/bin/python -m rag.demo

wiki: $(VENV)/installed
	@$(VENV)/bin/python -m rag.wiki $(foreach key,data limit seed reader outputs preset,$(if $($(key)),$(key)="$($(key))"))

test: $(VENV)/installed-dev
	HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	    "Python 3.11, 3.12 or 3.13 is needed, not " + sys.version.split()[0] + ": make … PYTHON=python3.13 chooses it")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), which takes a minute or two"
	@$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), with the tools of development, which takes a minute or two"
	@$(PIP) -e ".[dev,documents,milvus]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV), with what builds the site"
	@$(PIP) -e ".[docs]"
	@touch $@ $(VENV)/installed
