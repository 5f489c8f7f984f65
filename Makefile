# `make demo` and `make test` need only Python >= 3.10 and make: what they use is installed into .venv first, pinned.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two pips in one environment get in each other's way
.PHONY: demo test test-slow fuzz kill-test soak lint format types wheel docs docs-tables clean help
.PRECIOUS: $(VENV)/.installed-%

# What each kind of target installs, and which kinds are then satisfied as well. memory-gym comes apart, without its
# dependencies: its metadata pins an old gymnasium, with which nothing else here works.
extras_test := [test,bench,tasks,export]
extras_dev := [dev]
extras_docs := [docs]
apart_test := memory-gym
apart_dev := memory-gym
satisfied_demo := demo
satisfied_test := test demo
satisfied_dev := dev test demo
satisfied_docs := docs demo

demo: $(VENV)/.installed-demo  ## train compressive memory and an LSTM on Recall; compare them in results/demo
	$(BIN)/ctrl demo

# One thread per process, also in those that tests start: two workers already fill two cores.
test: $(VENV)/.installed-test  ## run the tests, without the slow ones; PYTEST="-k name" adds options
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(PYTEST)

test-slow: $(VENV)/.installed-test  ## run only the slow tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow $(PYTEST)

fuzz: $(VENV)/.installed-test  ## read 10,000 damaged files of every kind; CASES=n and SEED=n choose others
	OMP_NUM_THREADS=1 PYTHONPATH=tools $(BIN)/python -m fuzz --cases $(or $(CASES),10000) --seed $(or $(SEED),0)

lint: $(VENV)/.installed-dev  ## check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-dev  ## format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.installed-dev  ## mypy --strict over the four folders, tools/ and examples/
	$(BIN)/python tools/check_types.py

wheel: $(VENV)/.installed-dev  ## build dist/*.whl, install it elsewhere, import every module
	$(BIN)/python tools/check_wheel.py dist

docs-tables: $(VENV)/.installed-test  ## write the tables of the README and the docs; CHECK=1 only names stale ones
	PYTHONPATH=tools $(BIN)/python -m docs_tables $(if $(CHECK),--check)

kill-test: $(VENV)/.installed-test  ## kill a run at 100 random moments, resume it each time; KILLS=10 for fewer
	OMP_NUM_THREADS=1 $(BIN)/python tools/kill_test.py --kills $(or $(KILLS),100) --longest 5 --out kill_test.json

soak: $(VENV)/.installed-test  ## long runs with memory and descriptors flat, soak.json; SOAK="--steps 100000" for less
	OMP_NUM_THREADS=1 $(BIN)/python tools/soak.py $(SOAK)

# mkdocstrings reads the docstrings from .typing/, where the four folders lie under their import names.
docs: $(VENV)/.installed-docs  ## build the site into site/, strict
	PYTHONPATH=tools $(BIN)/python -c 'import check_types; check_types.lay_farm()'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove what the other targets made, except results/
	rm -rf $(VENV) .typing site dist build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find ctrl envs agents experiments tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' Makefile | while IFS='|' read -r target text; do printf '%-12s %s\n' "$$target" "$$text"; done

# setuptools comes first and pinned, since an isolated build would fetch the newest one. An interrupted install leaves
# no stamp and is done again.
$(VENV)/.installed-%: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("ctrl needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "installing what is missing in $(VENV); the first time takes minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.$(extras_$*)'
	$(if $(apart_$*),$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps $(apart_$*))
	@touch $(addprefix $(VENV)/.installed-,$(satisfied_$*))
