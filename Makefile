# Assumes Python 3.11 or newer with pip, and make. Every target sets up .venv itself; once that is done, in no time.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OUT := demo/out

# Of `make images`: images/README.md explains them.
REGISTRY :=
TAG := dev
VARIANT := cuda
FAISS := faiss-cpu
HARNESS := own
BASE_IMAGE := python:3.11-slim-bookworm
EXTRA_INDEX :=
PUSH :=
BUILD = $(PYTHON) images/build.py --registry "$(REGISTRY)" --tag "$(TAG)" --faiss "$(FAISS)" \
    --harness "$(HARNESS)" --base-image "$(BASE_IMAGE)" --extra-index "$(EXTRA_INDEX)" $(if $(PUSH),--push)

.PHONY: demo demo-loop test check lint fast faults compile docs locks lmms-eval images images-offline bench-attention bench-evaluate bench-finetune bench-folders bench-identities bench-ingest bench-reading bench-results bench-results_store bench-reuse bench-text bench-selection

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed; give it as: make PYTHON=/path/to/python3.11")'
	@echo "Setting up .venv (once; torch is most of the download)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

# Draws a small data set and tiny models with random weights, and runs the whole pipeline on them.
demo: $(READY)
	@$(BIN)/python -m examples.make --output-dir demo --num-records 240 --seed 7
	@$(BIN)/python pipeline.py run --output-dir $(OUT) \
	    --param dataset_uri=demo/dataset.json --param image_root_uri=demo/images \
	    --param llava_model=demo/models/llava --param mgm_model=demo/models/mgm --param bert_model=demo/models/bert \
	    --param num_shards=2 --param num_clusters=10
	@echo "The demo's models have random weights: it shows that everything works; what it selected means nothing."

# The same with a training and two small benchmarks at the end, for each of two seeds.
demo-loop: $(READY)
	@$(BIN)/python -m examples.make --output-dir demo --num-records 240 --seed 7
	@$(BIN)/python pipeline.py run --pipeline loop --output-dir $(OUT)-loop \
	    --param dataset_uri=demo/dataset.json --param image_root_uri=demo/images \
	    --param llava_model=demo/models/llava --param mgm_model=demo/models/mgm --param bert_model=demo/models/bert \
	    --param num_shards=2 --param num_clusters=10 \
	    --param train_model=demo/models/llava --param 'arms=["selected:1", "random:1", "selected:2", "random:2"]' \
	    --param train_options="batch_size=8 lora_rank=8 lora_alpha=16" \
	    --param benchmark_uris=demo/benchmarks/colours,demo/benchmarks/shapes
	@echo "The demo's models have random weights and learn from 48 records: it shows that everything works, and nothing else."

# All tests: the fast ones, a few faults, then those that run the whole pipeline, images, a browser or the parity data.
test: fast
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults
	@$(BIN)/python -m pytest tests/chain tests/parity tests/images tests/browser

# What a change has to pass before it goes in.
check: lint fast compile

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Side by side, each with one thread: two that share cores are slower than one. COVERAGE=--cov prints the branches that
# they take.
COVERAGE :=
fast: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/unit tests/cli tests/compile $(COVERAGE)

# What a run survives, with full numbers: kills, failing stores, damaged files, full disks (which are mounted: that takes root),
# and thousands of broken data sets. CI runs fewer of each.
faults: $(READY)
	@FREE2DS_FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults
	@FREE2DS_EXAMPLES=5000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto tests/unit/ingest/test_ingest_mutations.py

compile: $(READY)
	@$(BIN)/python pipeline.py compile --output free2ds.yaml

# Every stage's image.
images:
	@$(BUILD) --variant "$(VARIANT)"

# The same without an image registry: the base image from Debian's packages, torch's CPU build from where pip finds it.
images-offline:
	@sh images/make_base.sh "$(BASE_IMAGE)"
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
	    --dest images/wheels/cpu "$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' images/torch/requirements.txt)"
	@$(BUILD) --variant cpu --network host

# A cluster on this machine: kind, Kubeflow Pipelines by its own manifests (KFP_MANIFESTS: the folder manifests/kustomize of
# its release 2.17), and the images of `make images VARIANT=cpu` or `make images-offline`. Needs Docker, kind and kubectl.
KFP_MANIFESTS :=
KIND_NODE_IMAGE :=
.PHONY: cluster-up cluster-down test-cluster
cluster-up:
	@sh manifests/overlays/kind/up.sh "$(KFP_MANIFESTS)" "$(KIND_NODE_IMAGE)"

cluster-down:
	@kind delete cluster --name free2ds

# The whole pipeline on a real Kubeflow Pipelines: tests/cluster/README.md says what is checked and what these mean.
HOST :=
UI_HOST :=
STORE :=
GPU := 1
SHARDS :=
test-cluster: $(READY)
	@HOST="$(HOST)" UI_HOST="$(UI_HOST)" STORE="$(STORE)" REGISTRY="$(REGISTRY)" TAG="$(TAG)" GPU="$(GPU)" SHARDS="$(SHARDS)" \
	    $(BIN)/python -m pytest -v tests/cluster

# For evaluate's option harness=lmms-eval on this machine, beside what is there: torch stays the build that is installed.
lmms-eval: $(READY)
	@awk '/^[a-z0-9]/ { kept = !/^(torch==|triton==|nvidia-|cuda-)/ } kept' images/evaluate_lmms/requirements.txt > .venv/lmms-eval.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r .venv/lmms-eval.txt

# The page of parameters, the compiled file that the tests compare with, and a picture of the run form (which takes Chromium
# when the form has changed), from the pipeline itself.
docs: $(READY)
	@{ sed '/^| parameter/,$$d' docs/parameters.md; $(BIN)/python pipeline.py parameters; } > docs/parameters.new
	@mv docs/parameters.new docs/parameters.md
	@$(BIN)/python pipeline.py compile --output tests/compile/free2ds.yaml
	@$(BIN)/python pipeline.py parameters --picture docs/run-form.png

# constraints.txt, the lock of everything, and from it what is installed in each image, with hashes. Run it after a change of
# pyproject.toml; pins that still fit stay, UPGRADE=--upgrade takes the latest releases. Not after the set-up, which the old
# lock may keep from working; without wheels of this machine, whose torch may be another build than the index's.
UPGRADE :=
LOCKED = torch kfp cluster_scoring_gpu evaluate_lmms $(patsubst images/%/Dockerfile,%,$(wildcard images/*/Dockerfile))
COMPILE = env -u UV_FIND_LINKS $(BIN)/uv pip compile --quiet --python-version 3.11 --annotation-style line \
    --custom-compile-command "make locks"
locks:
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv; }
	@$(COMPILE) --universal --fork-strategy fewest --all-extras --group cluster_scoring_gpu --group evaluate_lmms \
	    --no-emit-package pip $(UPGRADE) --output-file constraints.txt pyproject.toml
	@for group in $(LOCKED); do \
	    mkdir -p images/$$group; \
	    $(COMPILE) --group $$group -c constraints.txt --generate-hashes --python-platform x86_64-manylinux_2_28 \
	        $$(test $$group != kfp || echo --no-deps) --output-file images/$$group/requirements.txt || exit 1; \
	done

# Wrong changes to the code, one at a time, in a copy of the tree: the fast tests have to notice 85 % of them. SEED picks
# the sample; SAMPLE=0 takes every place. benchmarks/mutants.py says more.
SEED := 1
SAMPLE := 150
.PHONY: mutants
mutants: $(READY)
	@$(BIN)/python -m benchmarks.mutants --seed $(SEED) --sample $(SAMPLE)

# Each ends with one line per bound and fails when one is short.
bench-attention bench-evaluate bench-finetune bench-folders bench-identities bench-ingest bench-reading bench-results bench-results_store bench-reuse bench-selection: bench-%: $(READY)
	@$(BIN)/python -m benchmarks.$*

bench-text: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]' -c constraints.txt
	@$(BIN)/python -m benchmarks.text
	@$(BIN)/python -m benchmarks.keyed
