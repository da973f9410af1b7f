# Everything starts here: a new machine needs Python 3.11, pip and these targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCS_VENV ?= .venv-docs
DOCS_BIN := $(DOCS_VENV)/bin
DOCS_PORT ?= 8000
SOURCES := $(shell find swift_kd_plugin -name '*.py') setup.py swift_kd_plugin_autoload_guard.pth

.PHONY: help install lint format test test-quick bench bench-quick quickstart proof wheel docs docs-serve clean

help:
	@echo "make install     make $(VENV) and install the plugin with all that it needs (CPU builds without a GPU)"
	@echo "make quickstart  internalise an experience into a small model, about 2 minutes without a GPU"
	@echo "make proof       every method on every teacher with three seeds, a table and a plot, about 40 minutes"
	@echo "make test        install and run every test, about 25 minutes"
	@echo "make test-quick  install and run what starts no command, server or vLLM, under 5 minutes"
	@echo "make bench       time and memory of losses, datasets and generation against others, about 12 minutes"
	@echo "make bench-quick the same at small sizes, about 3 minutes; fails where a target is not held"
	@echo "make wheel       build a wheel of the package in dist/, for other machines"
	@echo "make docs        build the docs as a site in site/, in both languages"
	@echo "make docs-serve  the same, and serve it on port $(DOCS_PORT)"
	@echo "make lint        check format and style"
	@echo "make format      mend format and style"
	@echo "make clean       remove $(VENV) and what the targets wrote"

$(VENV)/.dependencies: setup.py scripts/dev/install.sh
	PYTHON=$(PYTHON) bash scripts/dev/install.sh $(VENV)
	touch $@

$(VENV)/.package: $(VENV)/.dependencies $(SOURCES)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	rm -rf build swift_kd_plugin.egg-info
	touch $@

install: $(VENV)/.package

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(BIN)/ruff: | $(BIN)/pip
	$(BIN)/pip install --quiet ruff==0.17.5

lint: $(BIN)/ruff
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(BIN)/ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One thread for each worker: two that share the cores would wait for each other's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

test: install
	$(PYTEST)

test-quick: install
	$(PYTEST) -m quick

bench: install
	$(BIN)/python -m scripts.dev.bench_losses
	$(BIN)/python -m scripts.dev.bench_fused
	$(BIN)/python -m scripts.dev.bench_data
	$(BIN)/python -m scripts.dev.bench_rollout --check
	$(BIN)/python -m scripts.dev.bench_bits
	$(BIN)/python -m scripts.dev.bench_features
	$(BIN)/python -m scripts.dev.bench_generate
	$(BIN)/python -m scripts.dev.bench_cache

QUICK := --check --output output/bench_quick
bench-quick: install
	$(BIN)/python -m scripts.dev.bench_losses --tokens 64 --repeats 5 $(QUICK)/losses.json
	$(BIN)/python -m scripts.dev.bench_fused --tokens 128 --hidden 64 --repeats 3 --longest 2048 $(QUICK)/fused.json
	$(BIN)/python -m scripts.dev.bench_data --rows 5000 --join 5000 $(QUICK)/data.json
	$(BIN)/python -m scripts.dev.bench_rollout --samples 16 --steps 4 --rounds 1 $(QUICK)/rollout.json
	$(BIN)/python -m scripts.dev.bench_generate --prompts 48 --tokens 64 --repeats 13 $(QUICK)/generate.json

quickstart: install
	$(BIN)/python -m examples.quickstart.quickstart

proof: install
	$(BIN)/python -m examples.proof.proof

wheel: | $(BIN)/pip
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build swift_kd_plugin.egg-info

$(DOCS_VENV)/.installed: pyproject.toml
	test -x $(DOCS_BIN)/pip || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(DOCS_BIN)/pip install --quiet --disable-pip-version-check --group docs
	touch $@

# The Chinese site lies in a folder of the English one, whose building empties its own.
docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --strict
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/mkdocs build --strict --config-file mkdocs.zh.yml

docs-serve: docs
	$(DOCS_BIN)/python -m http.server --directory site $(DOCS_PORT)

clean:
	rm -rf $(VENV) $(DOCS_VENV) site dist build output .pytest_cache .ruff_cache
