# make demo   export the shipped checkpoint and complete two prompts from it
# make test   the whole test suite
# make check  ruff, mypy, import-linter, the map
# make map    draw the map in docs/architecture.md anew

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
NOVELIST := models/novelist-onnx

.PHONY: demo test check map clean
.DELETE_ON_ERROR:

demo: $(READY)
	@rm -rf $(NOVELIST)
	@echo "== models/novelist, a GPT-2 checkpoint, becomes $(NOVELIST), a verified bundle"
	$(BIN)/python -m export models/novelist --output $(NOVELIST)
	@echo
	@echo "== the bundle completes two prompts; PyTorch is not loaded"
	$(BIN)/python examples/demo.py $(NOVELIST)

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/map.py --check

map: $(READY)
	$(BIN)/python docs/map.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; make PYTHON=...")'
	@echo "== making .venv, once: PyTorch, ONNX Runtime and the tools of the tests, about a gigabyte"
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[adapter,cli,cpu,export,plot]" --group dev
	@touch $@

clean:
	rm -rf .venv build dist $(NOVELIST)
