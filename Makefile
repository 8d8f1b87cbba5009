# make run: the dashboard. make test: everything that is checked. Both set up what they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test fast lint bench gpu browser clean

# Without npm and network the dashboard starts all the same; its pages say what is missing, and it tries again itself.
run: $(VENV)/.run
	-$(BIN)/python -m pages.ui.browser
	$(BIN)/streamlit run app.py

# Everything: style, types, import contracts, unit tests, slow tests, the browser story.
test fast bench: export OMP_NUM_THREADS ?= 1
# Where the environment forbids to write bytecode, each of hundreds of processes would compile the library.
test fast bench: export PYTHONDONTWRITEBYTECODE :=
test: lint
	$(BIN)/python -m pytest

# The part to run while working: without what takes seconds each, and without a browser.
fast: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow and not browser"

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.test
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# Tests and measurements on a GPU, ten minutes: benchmarks/gpu.md.
gpu: $(VENV)/.test
	$(BIN)/python -m benchmarks.gpu --to gpu.json

# What runs in the visitor's browser: onnxruntime-web and uPlot, by the machine's npm or one from pip.
browser: $(VENV)/.run
	$(BIN)/python -m pages.ui.browser

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.run: requirements.txt | $(VENV)/.venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: tests/requirements.txt docs/requirements.txt pages/ui/browser/package-lock.json $(VENV)/.run
	$(BIN)/pip install --quiet -r tests/requirements.txt
	$(BIN)/python -m pages.ui.browser --tests
	touch $@

clean:
	rm -rf $(VENV) pages/ui/browser/node_modules .mypy_cache .ruff_cache .pytest_cache
