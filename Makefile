# Two commands for a fresh machine with Python >= 3.11, git and make: `make demo` and `make test`.
# uv is used when it is there, else venv and pip; both install the exact versions of requirements.lock.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo

.PHONY: demo test check unit faults night bench lock clean

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
demo: $(READY)
	@mkdir -p $(DEMO)
	PROMPTMILL_DATA_DIR=$(DEMO)/data $(BIN)/promptmill run examples/prompts.jsonl -o $(DEMO)/results.jsonl --model examples/pocket/model --restart
	@echo; echo "Results: $(DEMO)/results.jsonl. The first lines:"
	@$(BIN)/python examples/show.py $(DEMO)/results.jsonl

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The whole fault matrix with the leases of production, about a quarter of an hour, and docs/faults.md. With SEED or
# MINUTES: random faults on a busy pool instead; with LINES: one batch of so many lines under faults.
FAULTS_ROWS := $(VENV)/faults.jsonl
STORM := $(foreach flag,SEED MINUTES LINES EVERY WORKERS,$(if $($(flag)),--$(shell echo $(flag) | tr A-Z a-z) $($(flag))))
faults: $(READY)
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
night: $(READY)
	rm -rf $(NIGHT)
	$(BIN)/python -m tests.e2e.night --minutes $(or $(MINUTES),15) --folder $(NIGHT)

# All benchmarks, about an hour on two cores: let nothing else run beside them.
bench: $(READY)
	$(BIN)/python -m bench

# New exact versions, for every platform, from the bounds in pyproject.toml.
lock:
	uv lock --upgrade
	uv export --quiet --frozen --extra worker --all-groups --no-emit-project --no-header --output-file requirements.lock
	rm uv.lock

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .mypy_cache .ruff_cache
