# `make demo` and `make test` set up what they need; `make help` lists the rest.
PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
PIP_FLAGS := --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-compose check fuzz chaos bench bundle sbom clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(DEMO)/.done ## phantom scans through all four stages; writes out/demo/report.html
	$(DEMO)/bin/gliaflow demo --out out/demo

WORKERS := -n auto --maxprocesses 4 --dist loadgroup
test: $(DEV)/.done ## all tests, with a RabbitMQ of their own; PYTEST='-n 0 -k word' for some, one by one
	OMP_NUM_THREADS=1 $(DEV)/bin/python tests/rabbitmq.py $(DEV)/bin/python -m pytest $(WORKERS) $(PYTEST)

test-compose: $(DEV)/.done ## the containers, on a Docker engine
	$(DEV)/bin/python -m pytest tests/compose -o addopts=-ra --timeout 900

check: $(DEV)/.done ## style, types and import rules
	$(DEV)/bin/ruff check . && $(DEV)/bin/ruff format --check . && $(DEV)/bin/mypy && $(DEV)/bin/lint-imports

RUNS ?= 1000000
fuzz: $(DEV)/.done ## coverage-guided fuzzing of what comes from outside, RUNS=1000000 inputs each (Linux)
	$(DEV)/bin/pip install $(PIP_FLAGS) -e '.[fuzz]'
	for target in messages nifti bundle; do $(DEV)/bin/python tests/fuzz/fuzz.py $$target -runs=$(RUNS) || exit 1; done

bench: $(DEV)/.done ## speed beside a bare onnxruntime loop, on both brokers
	$(DEV)/bin/python tests/rabbitmq.py $(DEV)/bin/python bench/pipeline.py
	$(DEV)/bin/python bench/codec.py

chaos: $(DEV)/.done ## faults while scans stream: 1,000 scans, 200 faults; CHAOS='--seed 7 --only kill-stage' for others
	$(DEV)/bin/python tests/rabbitmq.py $(DEV)/bin/python tests/chaos $(or $(CHAOS),--seed 1)

bundle: $(DEV)/.done ## train the shipped demonstration bundle again, on phantoms
	$(DEV)/bin/gliaflow phantom out/phantoms --patients 200 --seed 1
	$(DEV)/bin/gliaflow train out/phantoms --out services/gliaflow_runtime/demo_bundle --profile demo --epochs 16 --generator infogan,reacgan --option steps=1500 --option reacgan.steps=2500 --option reacgan.ngf=14 --option reacgan.ndf=14 --name gliaflow-demo --seed 1

$(DEMO)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install $(PIP_FLAGS) -e '.[serve,report]'
	@touch $@

$(DEV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install $(PIP_FLAGS) -e '.[serve,report,train,otel,dev]'
	@touch $@

sbom: ## bill of materials (CycloneDX) and licences of the image, in out/sbom; fails on a licence that must not ship
	docker build -f deploy/Dockerfile --target sbom --output out/sbom .

clean: ## what was built, not what was trained
	rm -rf $(DEMO) $(DEV) out build *.egg-info
