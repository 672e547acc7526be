# `make` or `make help` lists what there is. Everything lives in .venv, build and node_modules.

# The first Python that is new enough; if none is, python3, for its name in the error.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done),python3)
ARGS ?=
PYTEST = PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 .venv/bin/python -m pytest

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help up test lint pytest bench replay fuzz chaos stubs clean venv venv-dev tools

help: ## this list
	@echo "joulegram: joules in, grams out."
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'
	@echo
	@echo '  Give flags with ARGS, such as: make up ARGS="--zone GB"'
	@echo '  Another Python: make PYTHON=/path/to/python3.11 up'

up: venv ## install on first use, then meter this machine and show the page; Ctrl-C stops
	@exec .venv/bin/joulegram up $(ARGS)

test: venv-dev tools lint pytest ## everything that must hold: lint, then all tests

lint: venv-dev ## ruff, mypy --strict, import-linter, buf
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	deploy/buf-lint

# Programs that are started, killed and watched want the machine to themselves; all else shares it.
pytest: venv-dev ## the tests alone, such as: make pytest ARGS="tests/cli -k config"
ifeq ($(ARGS),)
	$(PYTEST) -n 2 --dist loadfile --ignore=tests/e2e tests
	$(PYTEST) tests/e2e
else
	$(PYTEST) $(ARGS)
endif

bench: venv-dev ## our cost as a ratio to the bare cost; writes build/bench.json
	.venv/bin/python -m bench $(ARGS)

replay: venv-dev tools ## what machines of known right answer come out as; writes build/replay.json
	.venv/bin/python -m replay $(ARGS)

fuzz: venv-dev ## whatever files hold, the agent goes on; an hour, guided: make fuzz ARGS="--seconds 600"
	@.venv/bin/python -c 'import atheris' 2>/dev/null || .venv/bin/pip install --quiet 'atheris>=3'
	.venv/bin/python -m tests.fuzz.guided $(ARGS)

chaos: venv-dev tools ## break every part at random, count every joule; writes build/chaos.json
	.venv/bin/python -m chaos $(ARGS)

stubs: venv-dev ## the wire's Python stubs from proto/*.proto
	.venv/bin/python proto/generate.py

clean: ## remove what make made, .venv too; measured data stays
	rm -rf .venv build dist node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

venv:
	@$(PYTHON) deploy/bootstrap-venv collector

venv-dev:
	@$(PYTHON) deploy/bootstrap-venv collector dev

tools:
	@deploy/install-test-packages
