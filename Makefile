# make run          the four notebooks, everything trained anew, into runs/full (PROFILE=quick: minutes)
# make test         lint, unit tests, a quick run with every exercise answered, and the notebooks against their outputs
# make mutants      plants hundreds of mistakes, one at a time, and names the test that finds each; takes minutes
# make lab          JupyterLab on the notebooks
# make reference    trains the shipped weights and records the reference figures anew; takes hours
# make report       writes the report of runs/$(PROFILE) anew
# make explorer     explorer.html: three of the trained networks in a page, moved by sliders
# make bench        images a second on this machine, against the usual training loop
# make browser-test the explorer and a run's report in a headless Chromium (Debian: installed if missing)
# make faults       kills a run at 20 more random moments, and a worker of a Dask cluster; minutes
# make matrix       the notebooks from a clone with 1 and 2 threads, another processor, with and without Frey Face
# make steady       the unit tests ten times
# make audit        asks the index whether a pinned dependency has a known vulnerability
# make clean        removes runs and caches
# Each sets up .venv first if it is missing. PIP_ARGS are passed to pip install; PYTHON names the Python to build with.

PROFILE ?= full
PIP_ARGS ?=
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
READY := $(VENV)/.ready
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.PHONY: run test lint unit quick notebooks mutants lab reference report explorer bench browser-test faults matrix steady audit clean
.DEFAULT_GOAL := run

$(READY): requirements.txt pyproject.toml
	@python=; for p in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	  if "$$p" -c "$(SUPPORTED)" >/dev/null 2>&1; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 was found; install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	if ! "$(BIN)/python" -c "import pip; $(SUPPORTED)" >/dev/null 2>&1; then \
	  echo "Setting up $(VENV) with $$python"; "$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -r requirements.txt
	@touch $@

run: $(READY)
	$(BIN)/python -m aeutils run --profile $(PROFILE)

test: lint unit quick notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

quick: unit
	rm -rf runs/answered runs/test
	$(BIN)/python tests/answers.py write runs/answered
	$(BIN)/python -m aeutils run --profile quick --notebooks runs/answered --output runs/test
	$(BIN)/python tests/answers.py check runs/test

notebooks: quick
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --nbval notebooks/03_*.ipynb notebooks/0[!3]_*.ipynb # the longest first

mutants: $(READY)
	$(BIN)/python tests/mutants/run.py

lab: $(READY)
	$(BIN)/python -m jupyter lab notebooks

reference: $(READY)
	$(BIN)/python -m aeutils reference

report: $(READY)
	$(BIN)/python -m aeutils report runs/$(PROFILE)

explorer: $(READY)
	$(BIN)/python -m aeutils explorer

bench: $(READY)
	$(BIN)/python -m aeutils bench

browser-test: $(READY)
	command -v chromium || command -v google-chrome || (apt-get update -q && apt-get install -qy chromium)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet playwright==1.65.2
	$(BIN)/python -m pytest -q tests/browser

faults: $(READY)
	AEUTILS_SLOW=1 $(BIN)/python -m pytest -q tests/test_faults.py tests/test_cluster.py

matrix: $(READY)
	AEUTILS_SLOW=1 $(BIN)/python -m pytest -q tests/test_matrix.py

steady: $(READY)
	for i in 1 2 3 4 5 6 7 8 9 10; do $(BIN)/python -m pytest -q -n 2 --dist loadfile tests || exit 1; done

audit: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet pip-audit
	$(BIN)/python -m pip_audit --local --skip-editable

clean:
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
	find aeutils tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
