# `make demo` and `make test` set up what they need; `make help` lists the rest.
PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
PEERS := .venv-peers
AUGMENTATION_PEERS := .venv-peers-augmentation
# --no-compile: Python compiles the few modules that it imports, not all that pip installs
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile -c constraints.txt

# hundreds of processes in the tests import the same modules: Python must keep what it has compiled
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-compose check docs fuzz chaos bench bench-peers bench-augment bundle lock sbom clean

help: ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(DEMO)/.done ## phantom scans through all four stages; writes out/demo/report.html
	$(DEMO)/bin/gliaflow demo --out out/demo

# one more than cores, since tests wait; each has a RabbitMQ of its own
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')
test: ## all tests, each worker with a private RabbitMQ; WORKERS=0 PYTEST='-k word' selects some, one by one
	@$(PYTHON) tests/programs.py & $(MAKE) --no-print-directory $(DEV)/.done; result=$$?; wait; exit $$result
	OMP_NUM_THREADS=1 $(DEV)/bin/python tests/rabbitmq.py --brokers $(WORKERS) \
		$(DEV)/bin/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST)

test-compose: $(DEV)/.done ## tests of the containers; needs a Docker engine
	$(DEV)/bin/python -m pytest tests/compose -m compose --timeout 900

check: $(DEV)/.done ## style, types and import rules
	$(DEV)/bin/ruff check . && $(DEV)/bin/ruff format --check . && $(DEV)/bin/mypy && $(DEV)/bin/lint-imports

docs: $(DEV)/.done ## the documentation site with the API reference, in out/site
	$(DEV)/bin/python docs/site/build.py out/site

RUNS ?= 1000000
fuzz: $(DEV)/.done ## coverage-guided fuzzing of untrusted input, RUNS=1000000 inputs for each target (Linux)
	$(DEV)/bin/pip install $(PIP_FLAGS) -e '.[fuzz]'
	for target in messages nifti bundle dicom; do $(DEV)/bin/python tests/fuzz/fuzz.py $$target -runs=$(RUNS) || exit 1; done

bench: $(DEV)/.done ## speed relative to a bare onnxruntime loop, on both brokers
	$(DEV)/bin/python tests/rabbitmq.py $(DEV)/bin/python bench/pipeline.py
	$(DEV)/bin/python bench/codec.py

bench-peers: $(DEV)/.done $(PEERS)/.done ## speed beside BentoML, LitServe and Ray Serve (Linux); BENCH='--widths 8 --rounds 3' sets options
	$(DEV)/bin/python tests/rabbitmq.py $(DEV)/bin/python bench/peers --programs $(PEERS)/bin $(BENCH)

bench-augment: $(AUGMENTATION_PEERS)/.done ## speed of augmentations beside albumentations, batchgeneratorsv2, MONAI and TorchIO; BENCH='--rounds 5'
	$(AUGMENTATION_PEERS)/bin/python bench/augmentation.py $(BENCH)

chaos: $(DEV)/.done ## 200 faults while 1,000 scans stream; CHAOS='--seed 7 --only kill-stage' sets other options
	$(DEV)/bin/python tests/rabbitmq.py $(DEV)/bin/python tests/chaos $(or $(CHAOS),--seed 1)

bundle: $(DEV)/.done ## train the shipped demonstration bundle again, on phantoms
	$(DEV)/bin/gliaflow phantom out/phantoms --patients 400 --seed 1 --hgg-share 0.5
	$(DEV)/bin/gliaflow train out/phantoms --out services/gliaflow_runtime/demo_bundle --profile demo --epochs 80 --generator infogan,reacgan --option steps=1500 --option reacgan.steps=2500 --option reacgan.ngf=14 --option reacgan.ndf=14 --option pooled.penalty=0.002 --name gliaflow-demo --seed 1

$(DEMO)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/pip install $(PIP_FLAGS) -e '.[serve,report]'
	@touch $@

$(DEV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install $(PIP_FLAGS) -e '.[serve,report,train,dask,otel,docs,dicom,console,dev]'
	@touch $@

$(PEERS)/.done: bench/peers/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-compile -r bench/peers/requirements.txt
	@touch $@

$(AUGMENTATION_PEERS)/.done: bench/augmentation_peers.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(AUGMENTATION_PEERS)
	$(AUGMENTATION_PEERS)/bin/pip install $(PIP_FLAGS) -e '.[train]' -r bench/augmentation_peers.txt
	@touch $@

# uv writes the SHA-256 of every file of each package: all platforms and Python versions
LOCK := $(DEV)/bin/uv pip compile --quiet --no-deps --generate-hashes --no-annotate --custom-compile-command 'make lock' \
	--only-binary :all: --python-version 3.11.9 --python-platform x86_64-manylinux_2_28
lock: $(DEV)/.done ## deploy/hashes.txt from constraints.txt; with TORCH_INDEX=URL also deploy/hashes-torch.txt
	$(DEV)/bin/pip install $(PIP_FLAGS) uv
	$(LOCK) constraints.txt --output-file deploy/hashes.txt
	$(if $(TORCH_INDEX),grep '^torch==' constraints.txt | $(LOCK) - --default-index $(TORCH_INDEX) --output-file deploy/hashes-torch.txt)

SBOM := docker build -f deploy/Dockerfile --target sbom
sbom: ## bills of materials (CycloneDX) and licences of the images, in out/sbom; fails on a licence that must not ship
	$(SBOM) --output out/sbom .
	$(SBOM) --build-arg EXTRA=otel,dicom,report --output out/sbom/dicom .

clean: ## delete the environments and out/
	rm -rf $(DEMO) $(DEV) $(PEERS) $(AUGMENTATION_PEERS) out build *.egg-info
