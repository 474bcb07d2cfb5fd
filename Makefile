# What there is to do:
#
#   make demo      export the shipped checkpoint and complete two prompts from it
#   make test      prove everything, once
#   make test-all  the same proof, swept wider: full-size models, more cases
#   make check     ruff, mypy, import-linter, the map, the bill of materials: under a minute
#   make audit     known vulnerabilities of what is pinned (pip-audit, which asks a server)
#   make format    format the code, and draw the map in docs/architecture.md anew
#   make clean     remove the environment and what was built
#
# Each makes the environment .venv the first time; PYTHON=python3.12 chooses what with.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NOVELIST := models/novelist-onnx
SIDE_BY_SIDE := --numprocesses auto --dist loadfile --durations 15

.PHONY: help demo test test-all check style types contracts drawn audit format map clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(READY)
	@rm -rf $(NOVELIST)
	@echo "== models/novelist, a GPT-2 checkpoint, becomes $(NOVELIST), a verified bundle"
	$(BIN)/python -m export models/novelist --output $(NOVELIST)
	@echo
	@echo "== the bundle completes two prompts; PyTorch is not loaded"
	$(BIN)/python examples/demo.py $(NOVELIST)

test: $(READY)
	$(BIN)/python -m pytest -m "not wide" $(SIDE_BY_SIDE)

test-all: $(READY)
	$(BIN)/python -m pytest -m wide $(SIDE_BY_SIDE)

check: $(READY)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types contracts style drawn

style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

contracts:
	$(BIN)/lint-imports --no-cache

drawn:
	$(BIN)/python docs/map.py --check
	$(BIN)/python docs/sbom.py --check

audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --no-deps --disable-pip --requirement constraints.txt
	build/audit/bin/pip-audit --no-deps --disable-pip --requirement constraints-export5.txt

format: $(READY)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/python docs/map.py

map: format

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; make PYTHON=...")'
	@echo "== making .venv, once: PyTorch, ONNX Runtime and the tools of the tests, about a gigabyte"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[adapter,cli,cpu,export,plot,serve,signing]" --group dev
	@$(BIN)/python -m pip install --constraint constraints.txt --editable ".[cluster]" \
	    || echo "== Ray cannot be installed here; what needs it is not tested"
	@touch $@

clean:
	rm -rf .venv build dist $(NOVELIST)
