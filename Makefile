# TuneProof. `make` alone lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
READY := .venv/.ready
LORA := .venv-lora/.ready
SDKS := .venv-sdks/.ready
OPENAI_2 := .venv-openai-2/.ready
MLFLOW_2 := .venv-mlflow-2/.ready
OBJECTS := .venv-objects/.ready
OTHER_POSTGRES := tests/matrix/node_modules/.package-lock.json
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
SEED ?= 7
# Where it is set, each process compiles all modules anew, and pytest rewrites all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: chart chaos help setup services demo test check lint types unit steady machine fuzz conformance sdks cluster matrix objects acceptance acceptance-long lora simulate mutate bench docs house lock sbom audit clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) ## make .venv from the lock

$(READY): requirements.lock pyproject.toml
	@sh .ci/uv
	$(UV) venv --quiet --allow-existing --python "$${TUNEPROOF_PYTHON:-python3}" .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(PYTHON) requirements.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $(READY)

services: ## install what the tests start: PostgreSQL, Redis, Node.js, Prometheus
	@sh .ci/services

demo: setup ## the whole loop on simulated users; then the service stays up
	$(PYTHON) -m tuneproof demo --seed $(SEED)

test: setup services lint types ## everything but the long checks; a quarter of an hour on two cores
	$(PYTHON) -m pytest -q -n 4 --dist worksteal -m "not slow and not cluster"

check: setup lint types unit ## lint, types, unit tests; under a minute

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache

types: setup
	.venv/bin/mypy

unit: setup
	$(PYTHON) -m pytest -q -n 2 tests/unit tests/trainer/unit

steady: setup services ## ten times `make test`, a second one beside it in five: is any ever red?
	$(PYTHON) tools/steady.py

machine: setup services ## new stories of tests, rollouts and people: TUNEPROOF_MACHINE=100 tells more of them
	TUNEPROOF_MACHINE_SEED=$${TUNEPROOF_MACHINE_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')} \
		$(PYTHON) -m pytest -q -n 2 --timeout 0 -m slow tests/acceptance/test_machine.py

chaos: setup services ## ten minutes of requests while everything behind them fails in turn. ARGS="--seed 8"
	$(PYTHON) -m tests.chaos $(ARGS)

fuzz: setup ## 100,000 made-up requests to service and trainer, a line of 2 GiB, 10,000 connections: TUNEPROOF_FUZZ=1000000 sends more
	@seed=$${TUNEPROOF_FUZZ_SEED:-$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}; echo "TUNEPROOF_FUZZ_SEED=$$seed"; \
		TUNEPROOF_FUZZ_SEED=$$seed TUNEPROOF_FUZZ=$${TUNEPROOF_FUZZ:-100000} $(PYTHON) -m pytest -q -n 2 --dist loadfile --timeout 0 \
		tests/integration/server/test_openapi.py tests/trainer/integration/test_openapi.py -k generated
	TUNEPROOF_SIEGE=1 $(PYTHON) -m pytest -q --timeout 0 tests/trainer/integration/test_siege.py

acceptance: setup services ## kills, the demo over many seeds, real posts: about half an hour
	$(PYTHON) -m pytest -q -n 3 --dist worksteal --timeout 1800 -m slow

acceptance-long: setup services ## ten outages, twenty audiences, each step killed on both databases
	TUNEPROOF_OUTAGES=10 TUNEPROOF_AUDIENCES=20 TUNEPROOF_KILLS=all $(PYTHON) -m pytest -q --timeout 3000 -m slow \
		tests/acceptance/test_outages.py tests/acceptance/test_demo.py tests/acceptance/test_kills.py

lora: $(LORA) ## train, answer and kill the engines lora and ray, in an environment of their own
	OMP_NUM_THREADS=1 .venv-lora/bin/python -m pytest -q --timeout 900 -m lora tests/trainer/lora
	OMP_NUM_THREADS=1 .venv-lora/bin/python -m pytest -q --timeout 900 -m ray tests/trainer/ray_cluster

# pip chooses torch's build for this machine; everything else is pinned.
$(LORA): requirements.lock requirements-lora.txt requirements-ray.txt pyproject.toml
	@sh .ci/uv
	python3 -m venv .venv-lora
	.venv-lora/bin/pip install --quiet torch==2.13.0
	$(UV) pip install --quiet --python .venv-lora/bin/python --requirement requirements.lock
	.venv-lora/bin/pip install --quiet --no-deps --requirement requirements-lora.txt \
		--requirement requirements-ray.txt
	.venv-lora/bin/pip install --quiet --no-deps --editable .
	@touch $(LORA)

conformance: setup ## the trainer's answers by the original's document: OPENAPI=openapi.json, from github.com/openai/openai-openapi
	$(PYTHON) -m tests.conformance $(OPENAPI)

sdks: setup services $(SDKS) $(OPENAI_2) ## gateway and trainer by OpenAI's, LangChain's, LiteLLM's and others' libraries, unchanged
	TUNEPROOF_SDKS=.venv-sdks/bin/python TUNEPROOF_OPENAI_2=.venv-openai-2/bin/openai $(PYTHON) -m pytest -q -n 2 -m sdks tests/sdks

$(SDKS): requirements-sdks.txt
	@sh .ci/uv
	$(UV) venv --quiet --allow-existing --python "$${TUNEPROOF_PYTHON:-python3}" .venv-sdks
	$(UV) pip sync --quiet --python .venv-sdks/bin/python requirements-sdks.txt
	@touch $(SDKS)

$(OPENAI_2): tests/sdks/requirements-openai-2.txt
	@sh .ci/uv
	$(UV) venv --quiet --allow-existing --python "$${TUNEPROOF_PYTHON:-python3}" .venv-openai-2
	$(UV) pip sync --quiet --python .venv-openai-2/bin/python tests/sdks/requirements-openai-2.txt
	@touch $(OPENAI_2)

cluster: setup services ## a live API server, images, alerts, Sentinels, workers restarted and upgraded; root on Debian 12
	@sh .ci/cluster
	$(PYTHON) -m tools.kube_apiserver
	$(PYTHON) -m pytest -q --timeout 3600 -m cluster tests/cluster tests/deployed $(ARGS)

matrix: setup services $(OTHER_POSTGRES) $(MLFLOW_2) ## the integration tests on PostgreSQL 13 and 17, and with an MLflow 2 server. ARGS="mlflow-2"
	$(PYTHON) -m tests.matrix $(ARGS)

objects: setup services $(OBJECTS) ## datasets in an object store by S3's wire, which a server on loopback speaks
	TUNEPROOF_OBJECTS=.venv-objects/bin/python $(PYTHON) -m pytest -q --timeout 1800 -m objects tests/objects

$(OBJECTS): tests/objects/requirements.txt
	@sh .ci/uv
	$(UV) venv --quiet --allow-existing --python "$${TUNEPROOF_PYTHON:-python3}" .venv-objects
	$(UV) pip sync --quiet --python .venv-objects/bin/python tests/objects/requirements.txt
	@touch $(OBJECTS)

$(OTHER_POSTGRES): tests/matrix/package-lock.json
	npm ci --prefix tests/matrix --loglevel=error --no-audit --no-fund

$(MLFLOW_2): tests/matrix/requirements.txt
	@sh .ci/uv
	$(UV) venv --quiet --allow-existing --python "$${TUNEPROOF_PYTHON:-python3}" .venv-mlflow-2
	$(UV) pip sync --quiet --python .venv-mlflow-2/bin/python tests/matrix/requirements.txt
	@touch $(MLFLOW_2)

simulate: setup ## the error rates of the statistics, whole; writes tests/simulation/results.json
	$(PYTHON) -m tests.simulation

mutate: setup ## change what decides, 400 times; names what no test notices. ARGS="--seed 8 --size 0" for all
	OMP_NUM_THREADS=1 $(PYTHON) -m tools.mutate $(ARGS)

bench: setup services ## ratios against named peers; writes benchmarks/results.json
	@sh .ci/uv
	$(PYTHON) -m benchmarks.run

docs: setup ## run every example of README and docs
	$(PYTHON) -m pytest -q -m "not slow" tests/unit/test_docs.py tests/integration/test_examples.py

house: setup ## what the source weighs: functions, names, circles; ROOTS="--root before/src --root src" compares
	$(PYTHON) tools/house.py $(ROOTS)

lock: ## resolve the dependencies anew; the extras lora and ray have files of their own
	@sh .ci/uv
	$(UV) pip compile --quiet --universal --group dev --extra parquet --extra tokens --extra postgres --extra search --extra gepa \
		--extra mlflow --extra kubernetes --extra otel --extra s3 --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		pyproject.toml --output-file requirements.lock
	$(UV) pip compile --quiet --universal --extra parquet --extra tokens --extra postgres --extra search --extra gepa \
		--extra kubernetes --extra otel --extra s3 --constraint requirements.lock --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		pyproject.toml --output-file deploy/requirements.txt
	$(UV) pip compile --quiet --universal --group build --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file deploy/requirements-build.txt
	$(UV) pip compile --quiet --universal --group sdks --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file requirements-sdks.txt
	$(UV) pip compile --quiet --universal --group openai-2 --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file tests/sdks/requirements-openai-2.txt
	$(UV) pip compile --quiet --universal --group mlflow-2 --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file tests/matrix/requirements.txt
	$(UV) pip compile --quiet --universal --group objects --generate-hashes --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file tests/objects/requirements.txt

chart: setup ## write what is made from the chart's values, and its copies of rules and dashboards
	$(PYTHON) -m tools.chart

sbom: setup ## what the lock has in it, as CycloneDX JSON: dist/sbom.cdx.json
	$(PYTHON) tools/sbom.py requirements.lock dist/sbom.cdx.json

audit: setup ## ask osv.dev for known vulnerabilities of what the lock has; fails where nobody answers
	$(PYTHON) tools/audit.py requirements.lock

clean: ## remove what was made here
	rm -rf .venv .venv-lora .venv-mlflow-2 .venv-objects .venv-openai-2 .venv-sdks tests/matrix/node_modules .uv .tuneproof .mutate dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
