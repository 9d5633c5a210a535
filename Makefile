# Two commands for a fresh machine with Python >= 3.11, git and make: `make demo` and `make test`.
# uv is used when it is there, else venv and pip; both install the exact versions of requirements.lock.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo
PACKAGES := $(wildcard promptmill jobs submit serve worker deploy)

.PHONY: help demo check test docs faults night clients bench dist lock clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(READY): pyproject.toml requirements.lock
ifneq ($(shell command -v uv),)
	test -x $(BIN)/python || uv venv --quiet --python '>=3.11' $(VENV)
	VIRTUAL_ENV=$(VENV) uv pip sync --quiet requirements.lock
	VIRTUAL_ENV=$(VENV) uv pip install --quiet --no-deps --editable .
else
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
endif
	@touch $@

# The product, shown: a mixed file of prompts through the embedded Redis and a small model that ships with it.
demo: $(READY)  ## A mixed file of prompts, run by a small model that ships with it: demo/results.jsonl
	@mkdir -p $(DEMO)
	PROMPTMILL_DATA_DIR=$(DEMO)/data $(BIN)/promptmill run examples/prompts.jsonl -o $(DEMO)/results.jsonl --model examples/pocket/model --restart
	@echo; echo "Results: $(DEMO)/results.jsonl. The first lines:"
	@$(BIN)/python examples/show.py $(DEMO)/results.jsonl
	@echo; echo "Texts of a shape: a schema, a call of a tool, one of some words."
	@for job in schema tools classify; do \
	  PROMPTMILL_DATA_DIR=$(DEMO)/data $(BIN)/promptmill run examples/$$job.jsonl -o $(DEMO)/$$job.jsonl --model examples/pocket/model --restart >$(DEMO)/$$job.log 2>&1 || { cat $(DEMO)/$$job.log; exit 1; }; \
	  $(BIN)/python examples/show.py $(DEMO)/$$job.jsonl; done
	PROMPTMILL_DATA_DIR=$(DEMO)/data $(BIN)/promptmill run examples/questions.csv --user 'What is {{ number }} plus 3?' -o $(DEMO)/answers.csv --model examples/pocket/model --restart
	@echo; echo "A table: $(DEMO)/answers.csv. Its first columns:"
	@cut -d, -f1-3 $(DEMO)/answers.csv

# luacheck and actionlint where this machine has them: Debian's lua-check, and `go install` of rhysd/actionlint.
check: $(READY)  ## Lint, format and types; also the Lua scripts and the workflows, where their linters are installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(shell command -v luacheck),luacheck --quiet $(PACKAGES))
	$(if $(shell command -v actionlint),actionlint .github/workflows/*.yml)

test: check  ## The checks, then all tests but the whole fault matrix
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(READY)  ## The generated parts of docs/: parameters, commands, modules
	$(BIN)/python -m docs.generate

# The whole fault matrix with the leases of production, about a quarter of an hour, and docs/faults.md. With SEED or
# MINUTES: random faults on a busy pool instead; with LINES: one batch of so many lines under faults.
FAULTS_ROWS := $(VENV)/faults.jsonl
STORM := $(foreach flag,SEED MINUTES LINES EVERY WORKERS,$(if $($(flag)),--$(shell echo $(flag) | tr A-Z a-z) $($(flag))))
faults: $(READY)  ## The whole fault matrix and docs/faults.md, or random faults with SEED, MINUTES or LINES
ifneq ($(strip $(STORM)),)
	$(BIN)/python -m tests.e2e.faults.storm $(STORM)
else
	rm -f $(FAULTS_ROWS)
	FAULTS=30 FAULTS_TABLE=$(FAULTS_ROWS) $(BIN)/python -m pytest tests/e2e/faults
	$(BIN)/python -m tests.e2e.faults.table $(FAULTS_ROWS) docs/faults.md
endif

# A pool on this machine for MINUTES (15): the server of `deploy server`, three workers with two models, a scheduler, batches
# of three priorities and one by cron each minute, a Prometheus, a receiver of webhooks; all of it audited at the end.
NIGHT ?= night
night: $(READY)  ## A pool on this machine for MINUTES (15), audited at the end
	rm -rf $(NIGHT)
	$(BIN)/python -m tests.e2e.night --minutes $(or $(MINUTES),15) --folder $(NIGHT)

# Other projects' clients and test suites against a running server, and docs/clients.md. CLIENTS names some of them, SUITES is
# a folder of checkouts, FOLDER keeps environments, logs and results: outside this repository, by default in the folder of
# temporary files.
clients: $(READY)  ## Clients of other projects against `promptmill serve`, and docs/clients.md; CLIENTS='NAME ...' for some
	$(BIN)/python -m tests.clients $(CLIENTS) $(if $(SUITES),--suites $(SUITES)) $(if $(FOLDER),--folder $(FOLDER))

# All benchmarks, about two hours on two cores: let nothing else run beside them. PROMPTS is a file of questions, JSON lines
# with question, prompt or messages, for the one of real text. Those of guided lines need SCHEMAS, MaskBench's rows, and
# TOKENIZERS, folders with a tokenizer.json; what is not there is left out.
bench: $(READY)  ## All benchmarks, about two hours on two cores; PROMPTS=FILE for questions of your own
	$(BIN)/python -m bench $(if $(PROMPTS),--prompts $(PROMPTS)) $(if $(SCHEMAS),--schemas $(SCHEMAS)) \
	  $(if $(TOKENIZERS),--tokenizer $(TOKENIZERS))

# By way of the sdist, as an installer without a wheel would; then the wheel is installed away from here.
dist: $(READY)  ## A wheel and an sdist in dist/, checked, and the demo run by the installed wheel
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/python -m tests.e2e.dist dist

# New exact versions, for every platform, from the bounds in pyproject.toml.
lock:  ## New exact versions in requirements.lock; needs uv
	uv lock --upgrade
	uv export --quiet --frozen --extra worker --extra serve --extra data --all-groups --no-emit-project --no-header --output-file requirements.lock
	rm uv.lock

clean:  ## Remove what the others made
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .mypy_cache .ruff_cache
