# Everything that is done with a working copy. Each target sets itself up. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=

# The benchmark: a subset, one prompt of each kind, meant for under eight minutes on two idle cores.
# Results go to runs/, which git ignores. Only `make refresh-results` writes the committed ones.
SUITE ?= full
LIMIT ?= 8
MAX_NEW_TOKENS ?= 64
RESULTS ?= runs/benchmark
BENCHMARK_ARGS ?=
STUDY ?= runs/study/results
STUDY_ARGS ?=
# The tests of what changes most and runs fastest.
QUICK ?= tests/env/tree tests/env/decoding tests/env/gym tests/controllers/rules tests/test_floors.py \
    --ignore tests/env/gym/test_registration.py
# The fuzz of exactness. It appends a line of figures to runs/fuzz.txt.
ROUNDS ?= 100000
SEED ?= 0
SUBSET = --suite $(SUITE) --limit $(LIMIT) --max-new-tokens $(MAX_NEW_TOKENS)

.DEFAULT_GOAL := help
.PHONY: help benchmark study refresh-results test quick fuzz architectures interruptions check format clean FORCE

BIN := $(VENV)/bin/python
# Written when an install begins and when it ends. An install that did not end is repeated from the start.
BEGUN := $(VENV)/.specgym-begun
READY := $(VENV)/.specgym-ready

# The environment runs the code of the folder that the stamp names: a moved or copied folder is installed again.
ifneq ($(shell cat "$(READY)" 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif

help:
	@echo "make benchmark        compare all controllers on the default pair, greedy and sampled, into $(RESULTS)/"
	@echo "make study            train learned controllers and compare them with all rules, into $(STUDY)/; about two hours"
	@echo "make test             run all tests; the first run fetches the default model"
	@echo "make quick            run the tests of what changes most, in under 90 seconds"
	@echo "make fuzz             compare ROUNDS random rounds with plain decoding; the cases follow from SEED"
	@echo "make interruptions    stop commands at random moments and compare what they end with"
	@echo "make architectures    try tiny models of all architectures and write docs/architectures.md"
	@echo "make check            run ruff, its formatter, mypy and codespell; changes nothing"
	@echo "make format           format the code and repair what ruff can"
	@echo "make refresh-results  run the benchmark into results/benchmark/, which is committed, and update the pages"
	@echo "make clean            remove caches and build products; the environment and results stay"
	@echo
	@echo "Each target makes the environment in $(VENV) first. Variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS)"
	@echo "LIMIT=$(LIMIT) prompts, MAX_NEW_TOKENS=$(MAX_NEW_TOKENS), SUITE=$(SUITE), RESULTS=$(RESULTS), STUDY=$(STUDY)"
	@echo "ROUNDS=$(ROUNDS), SEED=$(SEED), BENCHMARK_ARGS, STUDY_ARGS, PYTEST_ARGS"

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "SpecGym needs Python 3.10 or newer; $(PYTHON) is $$("$(PYTHON)" --version 2>&1)." \
	        "Name another: make PYTHON=python3.11" >&2; exit 1; }
	@if [ -e "$(BEGUN)" ]; then \
	    echo "The last set-up was interrupted: making $(VENV) anew"; rm -rf "$(VENV)"; \
	elif [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ] && [ ! -f "$(VENV)/pyvenv.cfg" ]; then \
	    echo "$(VENV) is there, but no virtual environment. Remove it or name another: make VENV=FOLDER" >&2; exit 1; \
	fi
	@rm -f "$@"
	@"$(BIN)" -m pip --version >/dev/null 2>&1 || { \
	    mkdir -p "$(VENV)" && : >"$(BEGUN)" && "$(PYTHON)" -m venv "$(VENV)"; }
	@: >"$(BEGUN)"
	@echo "Installing into $(VENV); this takes a few minutes the first time"
	"$(BIN)" -m pip install --quiet --constraint constraints.txt setuptools
	"$(BIN)" -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@rm "$(BEGUN)"
	@echo "$(CURDIR)" >"$@"

benchmark: $(READY)
	"$(BIN)" -m scripts.benchmark $(SUBSET) --temperature 0 --output "$(RESULTS)/greedy" $(BENCHMARK_ARGS)
	"$(BIN)" -m scripts.benchmark $(SUBSET) --temperature 1 --output "$(RESULTS)/sampled" $(BENCHMARK_ARGS)

# The tables of README.md and the docs are made of 16 prompts.
refresh-results:
	$(MAKE) benchmark RESULTS=results/benchmark LIMIT=16
	"$(BIN)" -m scripts.update_pages

study: $(READY)
	"$(BIN)" -m scripts.study --output "$(STUDY)" $(STUDY_ARGS)

# One thread a worker: more would make the workers wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 "$(BIN)" -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

quick: $(READY)
	OMP_NUM_THREADS=1 "$(BIN)" -m pytest -n $(WORKERS) --dist worksteal $(QUICK) $(PYTEST_ARGS)

fuzz: $(READY)
	OMP_NUM_THREADS=1 "$(BIN)" -m tests.fuzz --rounds $(ROUNDS) --seed $(SEED) --workers $(WORKERS)

interruptions: $(READY)
	"$(BIN)" -m tests.support.interruptions

architectures: $(READY)
	OMP_NUM_THREADS=1 "$(BIN)" -W ignore -m tests.support.architectures

check: $(READY)
	"$(BIN)" -m ruff check
	"$(BIN)" -m ruff format --check
	"$(BIN)" -m mypy
	"$(BIN)" -m codespell_lib

format: $(READY)
	"$(BIN)" -m ruff check --fix-only --quiet
	"$(BIN)" -m ruff format

# find does not follow the links in specgym/.
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find env controllers agents scripts specgym tests -type d -name __pycache__ -prune -exec rm -rf {} +
