# Two commands: `make demo` (three stages and a table on the embedded corpus) and `make test`. Both make the environment first.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
DEMO ?= demo
RUNS ?= runs

.PHONY: env demo test lint lock clean
.DEFAULT_GOAL := demo

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "crossvit needs Python 3.11 or newer: none found on PATH; give one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: env
	$(VENV)/bin/crossvit pipeline experiment=$(DEMO) paths.runs=$(RUNS)

test: env
	$(VENV)/bin/python -m pytest

lint: env
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests

lock: env
	$(VENV)/bin/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) $(RUNS)
