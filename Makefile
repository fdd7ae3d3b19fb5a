# What CI runs is what a person runs. Everything happens in .venv, made on first use and left alone afterwards.

PYTHON ?= python3
VENV   := .venv
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help demo test check mutants bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(INSTALLED)  ## draw photos, train, register, promote, serve and ask: the whole way, on this machine
	@python -m scripts.demo

test: $(INSTALLED)  ## all tests; one that can't run here says why
	python -m pytest

check: $(INSTALLED)  ## formatting, lint, types and import contracts
	ruff format --check .
	ruff check .
	mypy
	lint-imports

mutants: $(INSTALLED)  ## which small changes to the code no quick test notices; ARGS="catdog_pyfunc.classifier*"
	mutmut run $(ARGS)
	mutmut results

bench: $(INSTALLED) $(PEERS)  ## speed of serving beside the alternatives; ARGS="--model … --images …"
	python benchmarks/serving.py $(ARGS)

clean:  ## remove .venv and caches; runs and models (mlflow.db, mlruns) stay
	rm -rf $(VENV) .venv-* build mutants *.egg-info plugin/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml catdog_pyfunc/requirements.txt plugin/pyproject.toml constraints.txt
	@echo "installing into $(VENV): about two minutes the first time, no more afterwards"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]' -e ./plugin
	@touch $@

$(PEERS): benchmarks/peers/requirements.txt constraints.txt
	@echo "installing what is measured beside this project into .venv-peers: about two minutes, 6 GB"
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/peers/requirements.txt
	@touch $@
