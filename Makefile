# Two commands: `make demo` (three stages and a table on the embedded corpus) and `make test`. Both make the environment first.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
  $$p -c 'import sys, venv, ensurepip; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
DEMO ?= demo
HOLD ?= torch==2.14.1 torchvision==0.29.1 # what `make lock` keeps: the matching pair that the figures were made with
OVERRIDES ?=

.PHONY: env demo test lint lock clean
.DEFAULT_GOAL := demo

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys, venv, ensurepip; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "crossvit needs Python 3.11 or newer with its venv module: $(if $(PYTHON),$(PYTHON) is not that,none found on PATH); give one with PYTHON=/path/to/python" >&2; exit 2; }
	@echo "installing the pinned packages into $(VENV) (some GB, minutes)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --upgrade pip
	@$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: env # DEMO=smoke: the same in seconds; OVERRIDES='seed=1': more keys
	$(VENV)/bin/crossvit pipeline experiment=$(DEMO) $(OVERRIDES)

test: env
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal

lint: env
	$(VENV)/bin/python -m ruff check src tests
	$(VENV)/bin/python -m ruff format --check src tests

lock: # what pyproject.toml brings today, from a fresh environment; commit the result
	"$(PYTHON)" -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-lock/bin/python -m pip install --quiet $(HOLD) --editable '.[dev]'
	$(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed -nE 's/^([A-Za-z0-9._-]+==[^+ ]+).*/\1/p' > constraints.txt
	rm -rf $(VENV)-lock

clean: # the environment; runs and data stay
	rm -rf $(VENV) $(VENV)-lock
