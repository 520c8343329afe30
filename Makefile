# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE := PYTHON=$(PYTHON) scripts/install_engine.sh .venv-engine

# What Python has compiled is kept, whatever the caller says: vLLM's imports take half as long then.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint unit gate live bench clean

demo: $(VENV)/.installed
	$(BIN)/servetwin demo --out out/demo

# The engine is installed beside the tests that need none.
test: $(VENV)/.installed-dev
	$(ENGINE) & engine=$$!; $(MAKE) lint unit gate; others=$$?; wait $$engine && exit $$others
	$(MAKE) live

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(BIN)/pytest -m "not live" --numprocesses 2 --dist worksteal

# The project's own gate with its own scheduler; `live` runs it with vLLM's.
gate: $(VENV)/.installed
	$(BIN)/servetwin check harness/bundled/suite.yaml

# The part that starts a real engine: 1.8 GiB in .venv-engine, a minute to install.
live: $(VENV)/.installed-dev
	$(ENGINE)
	$(BIN)/pytest -m "live and not alone" --numprocesses 2 --dist loadfile
	$(BIN)/pytest -m "live and alone"

bench: $(VENV)/.installed-dev
	$(BIN)/python tests/benchmarks/fidelity.py
	$(BIN)/python tests/benchmarks/speed.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-engine out build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
