# `make demo` runs the method, `make figures` the paper's figures, `make test` every check. Each makes a virtual
# environment where there is none, and installs the project into it. Elsewhere, or by another
# Python:  make test VENV=/tmp/other PYTHON=python3.12

VENV ?= .venv
PYTHON ?= python3
WORKDIR ?= runs/demo
BIN := $(VENV)/bin

# glibc gives the memory of XLA's temporaries back to the kernel after each use, and takes it anew
# page by page: 40 % of the time of a training step on CPU. With these it keeps what it has.
export MALLOC_ARENA_MAX := 1
export MALLOC_MMAP_THRESHOLD_ := 4294967296
export MALLOC_TRIM_THRESHOLD_ := 8000000000

.PHONY: demo figures test
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python -m cai_jax.run --config=configs/demo.py --workdir=$(WORKDIR)

figures: $(VENV)/installed
	$(BIN)/python -m cai_jax.reproduce --workdir=runs/figures

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The stamps say what the environment holds; a change of pyproject.toml installs again.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[test]'
	touch $(VENV)/installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON): expected Python 3.11 or later; install one and run: make PYTHON=path/to/python3" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
