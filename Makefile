# Two commands do everything on a fresh machine with Python 3.11+ and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Installed first and pinned: a bare `torch` may bring gigabytes of CUDA libraries. For a GPU: make demo TORCH="torch"
TORCH  ?= torch==2.13.0
TESTS  ?= tests

.PHONY: demo test test-all lint bench docs clean
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable '.[text,ledger,app]'
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# The browser tests drive Debian's Chromium; elsewhere install any Chromium and set CHROMIUM to its path.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null 2>&1 || test -n "$$CHROMIUM" || \
	  { echo "installing chromium"; SUDO=$$(test "$$(id -u)" = 0 || echo sudo); \
	    $$SUDO apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq chromium >/dev/null; }

demo: $(VENV)/.installed ## forget from classifiers, a regressor and a small language model, and prove it
	$(BIN)/expunge demo
	$(BIN)/expunge run demo-text
	$(BIN)/expunge ledger demo
	@echo 'to see, compare and attack these models in the browser: $(BIN)/expunge app'

test: $(VENV)/.test-installed chromium ## lint, types and the tests that CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check src tests benchmarks examples docs app
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 $(TESTS)

test-all: $(VENV)/.test-installed chromium ## everything, the slow checks included
	$(BIN)/python -m pytest -n 2 -m '' $(TESTS)

bench: $(VENV)/.test-installed ## performance, as ratios
	for file in $(filter-out benchmarks/timing.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

docs: $(VENV)/.docs-installed ## the guide and the generated reference
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -q -W -b html docs docs/_build/html

.PHONY: app
app: $(VENV)/.test-installed ## the pages of the web app, from app/ into the package (needs Node 20 or newer)
	$(BIN)/python app/build.py

clean:
	rm -rf $(VENV) runs docs/_build docs/reference app/node_modules
