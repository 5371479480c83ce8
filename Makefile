# Every target sets up what it needs: a .venv beside this file, everything else from the package index.
#   make demo | motion | texture | digits | ddf-net | erf-growth | test | check | docs | wheel-test | bench | gpu-test |
#   budgets | mutants | soak | clean
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
# make gpu-test GPU_PYTHON=python3 takes an environment that is there already.
GPU_PYTHON ?= $(BIN)/python

.PHONY: demo motion texture digits ddf-net erf-growth test check docs wheel-test bench gpu-test budgets mutants soak clean
.DEFAULT_GOAL := test

demo: $(VENV)/.demo
	$(BIN)/python -m dynk demo

motion: $(VENV)/.demo
	$(BIN)/python examples/motion.py

texture: $(VENV)/.demo
	$(BIN)/python examples/texture.py

digits: $(VENV)/.examples
	$(BIN)/python examples/digits.py

ddf-net: $(VENV)/.examples
	$(BIN)/python examples/ddf_net.py

erf-growth: $(VENV)/.demo
	$(BIN)/python examples/erf_growth.py

test: $(VENV)/.test
	$(PYTEST) -n $(WORKERS) --dist worksteal tests

check: $(VENV)/.test $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site; whatever is missing or leads nowhere is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict

# Builds the wheel and the source distribution, and tries the wheel in an environment with NumPy and Numba alone.
wheel-test: $(VENV)/.package
	$(BIN)/python tests/wheel.py

# Some ten minutes on a quiet machine; writes bench/results/<device>.json. make bench BENCH="--only filter_norm" runs a part,
# BENCH=--readme puts the results there are into the README.
bench: $(VENV)/.bench
	$(BIN)/python -m dynk bench $(BENCH)

# The same test bodies on a real device, then the memory checker over the smallest of them.
gpu-test: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(VENV)/.test)
	PYTHONPATH=.:adapters $(GPU_PYTHON) -m pytest -m gpu tests
	@if command -v compute-sanitizer >/dev/null; then \
	    PYTHONPATH=.:adapters compute-sanitizer --tool memcheck --error-exitcode 1 \
	        $(GPU_PYTHON) -m pytest -m gpu -k "smoke" tests; \
	else echo "compute-sanitizer is not installed: memory check left out"; fi

# Renews tests/budgets.json, what every kernel takes of every GPU architecture: minutes of compiling.
budgets: $(VENV)/.test
	$(BIN)/python tests/test_cuda_budgets.py --write

# Plants faults in the kernels, one at a time: the tests must notice. MUTANTS="--sample 60" draws 60 of each family and
# language, half an hour; MUTANTS=--again runs what survived the last time.
mutants: $(VENV)/.test
	cd tests && PYTHONPATH=..:../adapters ../$(BIN)/python -m mutants $(MUTANTS)

# 100,000 cases of the property tests on every lane of this machine, an hour or more; writes bench/results/soak-*.json.
soak: $(VENV)/.test
	PYTHONPATH=.:adapters $(BIN)/python tests/soak.py --workers $(WORKERS) $(SOAK)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo.png motion.png texture.png digits.png ddf_net.png erf_growth.png

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"dynk needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip

# One stamp for each extra: renewed when the dependencies change.
$(VENV)/.%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) install --quiet --constraint $(CONSTRAINTS) --editable ".[$*,tbb]"
	@touch $@
