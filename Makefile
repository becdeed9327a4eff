# Everything is installed into .venv and nowhere else; `make help` lists the commands.

BIN := .venv/bin
NEEDS_GB ?= 9

export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport MPLBACKEND PYTHONHOME PYTHONPATH

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test chapters book lab clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## train a diffusion model on handwritten digits and draw samples (3 minutes, into runs/digits)
	@$(BIN)/minidiff train digits --out runs/digits --resume

test: .venv/.extras ## lint, import contracts, unit tests, every chapter, the book
	$(BIN)/ruff check
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest tests chapters --nbval --nbval-current-env \
	    --nbval-sanitize-with tests/nbval_sanitize.cfg -n 2 --dist loadfile
	$(BIN)/jupyter-book build book/

chapters: .venv/.extras ## run every chapter again and store its outputs
	@$(BIN)/python book/execute.py

book: .venv/.extras ## build the book into book/_build/html
	$(BIN)/jupyter-book build book/

lab: .venv/.extras ## open the chapters in JupyterLab
	$(BIN)/jupyter-lab chapters/

clean: ## delete what was built; .venv and runs/ stay
	rm -rf book/_build book/chapters build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find minidiff tests book -name __pycache__ -prune -exec rm -rf {} +

# ---- the environment: a stamp file is written only when an install came to its end ----

.venv/.installed: pyproject.toml
	@$(if $(torch)$(has-disk),,$(error \
	    minidiff needs $(NEEDS_GB) GB of free disk here for PyTorch with CUDA: free some, or put a CPU-only torch into .venv first (README)))
	@$(if $(usable),,$(venv-python) -m venv --clear .venv)
	@echo "Installing minidiff and PyTorch into .venv: about 4 minutes, once."
	@$(drop-halves)
	@$(BIN)/python -m pip install -qq -e .
	@touch $@

.venv/.extras: .venv/.installed
	@echo "Installing the tools of the notebooks, the tests and the book into .venv: about 2 minutes, once."
	@$(drop-halves)
	@$(BIN)/python -m pip install -qq -e '.[notebooks,dev]'
	@touch $@

# A .venv whose pip does not start (half made, moved, its Python gone) is made anew.
usable := $(shell $(BIN)/pip --version 2>/dev/null)
$(if $(usable),,$(shell rm -f .venv/.installed .venv/.extras))

# The first Python that is new enough and has module $(1); `make demo PYTHON=/path/to/python` names one.
python-with = $(firstword $(foreach p,$(or $(PYTHON),python3 python3.11 python3.12 python3.13 python3.14),$(shell \
    $(p) -c 'import sys, $(1); sys.version_info < (3, 11) or print("$(p)")' 2>/dev/null)))
venv-python = $(or $(call python-with,ensurepip),$(if $(call python-with,sys),$(error \
    $(call python-with,sys) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)),$(error \
    minidiff needs Python 3.11 or newer$(if $(PYTHON),; $(PYTHON) is not): install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11)))

torch = $(if $(usable),$(wildcard .venv/lib/python3*/site-packages/torch-*.dist-info/INSTALLER))
has-disk = $(shell df -Pk . | awk 'NR == 2 && $$4 >= $(NEEDS_GB) * 1048576')

# pip writes INSTALLER last: a package without it was interrupted, and pip must not take it for installed.
drop-halves = for d in .venv/lib/python3*/site-packages/*.dist-info; do [ -e "$$d/INSTALLER" ] || rm -rf "$$d"; done
