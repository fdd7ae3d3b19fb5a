# CI runs the same targets as people do. They use .venv, which is created on first use.

PYTHON ?= python3
VENV   := .venv
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers/.installed
ENGINES := .venv-engines/.installed
# Compiled, as pip would: where PYTHONDONTWRITEBYTECODE is set, each process compiles what it imports, for ten seconds and more.
UV := $(VENV)/bin/uv pip install --quiet --compile-bytecode --python
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --only-binary :all: --generate-hashes --custom-compile-command 'make lock' -c constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY ?= true
TESTS ?= not slow and not docker

.PHONY: help demo test engines check docs lock mutants bench bench-scale clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+: .*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(INSTALLED)  ## train on synthetic images, register, promote, serve and send a request, on this machine
	@python -m scripts.demo

test: $(INSTALLED)  ## run the tests that take at most five minutes; TESTS= runs all, and a skipped one says what it needs
	OMP_NUM_THREADS=1 python -m pytest -n 2 -m "$(TESTS)" $(ARGS)

engines: $(ENGINES)  ## run the tests of Spark and Ray, in an environment with both
	PATH=$(CURDIR)/.venv-engines/bin:$$PATH OMP_NUM_THREADS=1 python -m pytest -m "ray or spark" tests/integration $(ARGS)

check: $(INSTALLED)  ## check formatting, lint, types and import contracts
	ruff format --check .
	ruff check .
	mypy
	lint-imports

docs: $(INSTALLED)  ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lock: $(INSTALLED)  ## compile the lock files of what images install; ARGS=--upgrade raises what constraints.txt doesn't name
	$(LOCK) deploy/tracking/requirements.in -o deploy/tracking/requirements.txt $(ARGS)
	$(LOCK) catdog_pyfunc/requirements.txt plugin/mlflow_catdog/runtime/requirements.txt -o deploy/catdog/requirements.txt $(ARGS)

mutants: $(INSTALLED)  ## list small changes to the code that no quick test notices; ARGS="catdog_pyfunc.classifier*"
	mutmut run $(ARGS)
	mutmut results

bench: $(INSTALLED) $(PEERS)  ## compare serving speed with the alternatives, side by side; ARGS="--model … --images …"
	python benchmarks/serving.py $(ARGS)

bench-scale: $(ENGINES)  ## measure how training and scoring grow with the number of images, for hours; ARGS="--counts 2000 20000"
	PATH=$(CURDIR)/.venv-engines/bin:$$PATH python benchmarks/scale.py $(ARGS)

clean:  ## remove .venv, build outputs and caches; runs and models (mlflow.db, mlruns) stay
	rm -rf $(VENV) .venv-* build mutants site *.egg-info plugin/build plugin/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml catdog_pyfunc/requirements.txt plugin/pyproject.toml constraints.txt
	@echo "installing into $(VENV) with uv, about a minute; later calls reuse it"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(UV) $(VENV)/bin/python -c constraints.txt -e '.[train,dev]' -e ./plugin
	@touch $@

$(ENGINES): $(INSTALLED)
	@echo "installing Spark and Ray into .venv-engines: pytest-xdist and MLflow would trip over pyspark in $(VENV)"
	$(PYTHON) -m venv .venv-engines
	$(UV) .venv-engines/bin/python -c constraints.txt -e '.[dev,spark]' -e './plugin[ray]'
	@touch $@

$(PEERS): $(INSTALLED) benchmarks/peers/requirements.txt constraints.txt
	@echo "installing the alternatives to compare with into .venv-peers, about a minute and 6 GB"
	$(PYTHON) -m venv .venv-peers
	$(UV) .venv-peers/bin/python -c constraints.txt -r benchmarks/peers/requirements.txt
	@touch $@
