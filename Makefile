# make train   handwritten digits, in minutes          make test        the fast tests
# make lint    ruff and mypy                           make test-slow   the others
# make docs    the site, in site/
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: train test test-slow lint format docs

train: $(VENV)/ready
	$(BIN)/accelerate launch train_ddpm.py $(ARGS)

test: $(VENV)/ready-for-tests
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/ready-for-tests
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/ready-for-docs
	$(BIN)/mkdocs build --strict

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/ready-for-tests: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

$(VENV)/ready-for-docs: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@
