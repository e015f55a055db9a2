# Each target first sets up what it needs in .venv: torch, the tested versions of the dependencies, this package.
# That happens again only when pyproject.toml or constraints.txt changed. Settings, e.g. `make test PYTHON=python3.12`:
#   PYTHON         the interpreter .venv is made from, at least 3.11
#   TORCH_INSTALL  what `pip install` is given to get torch, e.g. "torch==2.13.0 --index-url URL"; empty chooses:
#                  a torch already in .venv, or a CUDA torch >= 2.11 of PYTHON, is kept and used;
#                  else, where nvidia-smi works, the tested version from the default index;
#                  else the CPU build from PyTorch's own index, or, if that cannot be reached, from the default index
#                  (which on most Linux machines brings several GB of CUDA packages along).
#   ARGS           added to the command, e.g. `make test ARGS="-k grids"` or `make demo ARGS="--help"`
#   JOBS           test processes at once, each with about 1 GiB; by default one per core, at most 8; 0: in this process

PYTHON ?= python3
TORCH_INSTALL ?=
ARGS ?=
JOBS ?= logical

VENV := .venv
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
# --no-compile: Python compiles the modules that are used when they are first imported, of thousands that are installed.
# It has to keep what it compiled: each process would otherwise compile torch and diffusers again, ten seconds of work.
INSTALL := $(PIP) install -qq --no-compile
unexport PYTHONDONTWRITEBYTECODE
# One thread for each process: several threads of several processes would wait for each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal
AXE := axe-core@4.14.1
TORCH := $(shell grep '^torch==' constraints.txt)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup demo test fuzz test-slow test-all lint format docs clean

help:
	@echo "make demo       distil the built-in teacher by DMD and by DP-DMD and write runs/demo/report.html"
	@echo "make test       the fast tests (test-slow: the others, test-all: both)"
	@echo "make fuzz       thousands of generated inputs for everything that reads files"
	@echo "make lint       ruff's checks and formatting (format: apply them), the direction of imports, types"
	@echo "make docs       build the documentation into docs/_build/html; warnings and dead references are errors"
	@echo "make setup      only set up $(VENV)"
	@echo "make clean      remove $(VENV), caches and builds; runs/ stays"

setup: $(READY)

demo: $(READY)
	@$(VENV)/bin/dpdmd demo $(ARGS)

test: $(READY)
	@$(PYTEST) -m "not slow" $(ARGS)

# pytest exits with 5 when no test is marked slow.
test-slow: $(READY)
	@$(PYTEST) -m slow $(ARGS) || [ $$? -eq 5 ]

test-all: $(READY)
	@$(PYTEST) $(ARGS)

# Thousands of generated inputs, others each time; `make test` has a few of them that are the same each time.
fuzz: $(READY)
	@DPDMD_FUZZ=1 $(PYTEST) tests/fuzz $(ARGS)

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/basedpyright --warnings

format: $(READY)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# -E reads every page again, so that a warning is seen each time and not only when its page has changed.
docs: $(DOCS_READY)
	@$(VENV)/bin/python -m sphinx -b html -E -q -n -W --keep-going $(ARGS) docs docs/_build/html
	@$(VENV)/bin/python docs/check_offline.py docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build .pytest_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

define HAS_CUDA_TORCH
import sys, torch; sys.exit(torch.version.cuda is None or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))
endef

define TORCH_VERSION
from importlib.metadata import version; print(version("torch"))
endef

# Asked before pip is, which would retry an index that cannot be reached for every package in turn.
define INDEX_HAS_TORCH
import sys, urllib.request as r; sys.exit("$(TORCH)".replace("==", "-") not in \
r.urlopen("$(TORCH_CPU_INDEX)/torch/", timeout=10).read().decode())
endef

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "dpdmd needs Python >= 3.11, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
		echo "Name another interpreter: make PYTHON=python3.12"; exit 1; } >&2
	@if [ ! -x $(VENV)/bin/pip ]; then \
		site=; if $(PYTHON) -c '$(HAS_CUDA_TORCH)' 2>/dev/null; then site=--system-site-packages; fi; \
		echo "[1/3] making $(VENV)$${site:+ $$site}"; \
		$(PYTHON) -m venv --clear $$site $(VENV) || { \
			echo "Could not make $(VENV). On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }; \
	fi
	@if $(VENV)/bin/python -c '$(TORCH_VERSION)' >/dev/null 2>&1; then \
		echo "[2/3] keeping torch $$($(VENV)/bin/python -c '$(TORCH_VERSION)')"; \
	elif [ -n "$(TORCH_INSTALL)" ]; then \
		echo "[2/3] installing $(TORCH_INSTALL)"; \
		$(INSTALL) $(TORCH_INSTALL); \
	elif nvidia-smi >/dev/null 2>&1; then \
		echo "[2/3] installing $(TORCH) for the GPU (several GB)"; \
		$(INSTALL) -c constraints.txt torch; \
	elif timeout 20 $(VENV)/bin/python -c '$(INDEX_HAS_TORCH)' 2>/dev/null; then \
		echo "[2/3] installing $(TORCH), CPU build"; \
		$(INSTALL) -c constraints.txt torch --index-url $(TORCH_CPU_INDEX); \
	else \
		echo "[2/3] installing $(TORCH) from the default index; it is not to be had from $(TORCH_CPU_INDEX)"; \
		$(INSTALL) -c constraints.txt torch; \
	fi
	@echo "[3/3] installing dpdmd and its dependencies"
	@grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	@echo "torch==$$($(VENV)/bin/python -c '$(TORCH_VERSION)')" >> $(VENV)/constraints.txt
	@$(INSTALL) -c $(VENV)/constraints.txt -e '.[test]'
	@npm install --no-save --no-audit --no-fund --silent --prefix $(VENV) $(AXE) >/dev/null 2>&1 || \
		echo "no $(AXE): the accessibility of the report will not be tested (npm installs it)"
	@touch $@

$(DOCS_READY): $(READY)
	@echo "installing what builds the documentation"
	@$(INSTALL) -c $(VENV)/constraints.txt -e '.[docs]'
	@touch $@
