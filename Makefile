# One command a task. Bare `make` lists them. Needs python3 (3.11 to 3.13), make and git; the rest goes into .venv.

PYTHON ?= python3
VENV := .venv
BUSI_WORKSPACE := workspaces/busi
STUDY_WORKSPACE := workspaces/study
# Units of a study that run at a time; they share the CPU's cores, and GPUs are handed out in turn.
JOBS ?= 1
# Where the BUSI images are: benign/, malignant/ and normal/.
DATA ?= $(or $(BUSI_DIR),../shared/data/busi)

# Named, so that make 3.81 of macOS does not bypass the shell and, with it, the PATH below.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# dvc starts `amlp` by name, and this venv's is the one that is meant, activated or not.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Nothing here reports to anybody, or loads from a model hub.
export DVC_NO_ANALYTICS := true
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export GX_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export HF_HUB_OFFLINE := 1

LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet
# The locks that are parts of requirements.lock, and what each is for.
PARTS := train pipeline mlflow
LOCK_train := $(LOCK) pyproject.toml
LOCK_pipeline := $(LOCK) --group pipeline
LOCK_mlflow := $(LOCK) --group mlflow

# Images are named $(IMAGE_PREFIX)train:$(TAG), and so on. A commit names what was built from it, with -dirty where files
# differ from it: Kubeflow's cache takes an image's name for its content.
IMAGE_PREFIX ?= amlp-
COMMIT = $(shell git rev-parse HEAD)$(if $(shell git status --porcelain),-dirty)
TAG ?= $(COMMIT)
# For `docker build`: --network host, --secret id=pip,src=pip.conf, --build-arg BASE=...
BUILD_FLAGS ?=
IMAGES := train stages pipeline mlflow

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo busi study test test-unit test-gate-mutations lint typecheck format docs lock lock-check bench-mps \
  bench-pretrain bench-predict bench-near-duplicates bench-gate images image-test serve-test test-cluster k8s-dev k8s-dev-secrets k8s-single-user \
  k8s-single-user-secrets pipeline-local clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make .venv with everything in it (minutes the first time, nothing after)

$(VENV)/.ready: $(VENV)/.locked pyproject.toml
	uv pip install --python $(VENV) --no-deps --no-build-isolation --editable .
	@touch $@

# Bytecode is compiled here because some machines forbid Python to write it, and uncompiled imports take half a minute.
# The installer itself comes out of the lock too, checked by hash.
$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V); 3.11, 3.12 or 3.13 is needed: make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/[^\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --require-hashes -r $(VENV)/uv.txt
	uv pip sync --python $(VENV) --require-hashes --compile-bytecode requirements.lock
	@touch $@

demo: setup ## run the whole pipeline on the embedded phantom data and say where to look
	dvc repro
	@amlp summary

busi: setup ## run the whole pipeline on the BUSI images: make busi DATA=folder
	@test -d "$(DATA)" || { echo "no folder '$(DATA)': make busi DATA=folder with benign/, malignant/, normal/" >&2; exit 2; }
	amlp init $(BUSI_WORKSPACE) --recipe busi-cpu --data "$(DATA)"
	cd $(BUSI_WORKSPACE) && dvc repro
	@cd $(BUSI_WORKSPACE) && amlp summary

# Not with `dvc repro` alone: a study is many trainings, and resumes where it was stopped.
study: setup ## compare variants, label fractions and seeds on BUSI, write docs/explanation/results.md: make study DATA=folder JOBS=2
	@test -d "$(DATA)" || { echo "no folder '$(DATA)': make study DATA=folder with benign/, malignant/, normal/" >&2; exit 2; }
	amlp init $(STUDY_WORKSPACE) --recipe busi-study --data "$(DATA)"
	cd $(STUDY_WORKSPACE) && dvc repro preprocess
	cd $(STUDY_WORKSPACE) && \
	  amlp study $(CURDIR)/studies/busi-cpu.yaml --jobs $(JOBS) --page $(CURDIR)/docs/explanation/results.md

# A file's tests stay together, for some share what is slow to make. Integration tests wait more than they compute; each
# of the three processes has servers of its own.
test: setup test-unit ## run all tests
	pytest tests/integration --numprocesses=3 --dist=loadfile --no-loadscope-reorder

test-unit: setup ## run the quick tests only, on all cores
	pytest tests/unit --numprocesses=auto --maxprocesses=8 --dist=loadfile

test-gate-mutations: setup ## break the promotion gate in many ways and see that its tests notice each (minutes)
	python -m tests.support.mutate_gate

lint: setup ## check style and formatting
	ruff check .
	ruff format --check .

typecheck: setup ## check types
	mypy

format: setup ## bring the code into shape
	ruff check --fix .
	ruff format .

docs: setup ## build the documentation's site into site/, and fail on a warning
	python -m devtools.reference_pages
	zensical build --strict

# uv keeps the versions that the file it writes already holds, so each other lock is a part of the whole one, and a check
# finds what pyproject.toml asks for, not what was released since. To take new versions: rm requirements.lock; make lock
lock: setup ## renew the locks after a change of dependencies in pyproject.toml
	$(LOCK) pyproject.toml --all-extras -o requirements.lock
	$(foreach part,$(PARTS),cp requirements.lock requirements-$(part).lock; \
	  $(LOCK_$(part)) -o requirements-$(part).lock;)

lock-check: setup ## check that the locks fit pyproject.toml
	@mkdir -p $(VENV)/lock && cp requirements*.lock $(VENV)/lock
	$(LOCK) pyproject.toml --all-extras -o $(VENV)/lock/requirements.lock
	$(foreach part,$(PARTS),$(LOCK_$(part)) -o $(VENV)/lock/requirements-$(part).lock;)
	for lock in requirements*.lock; do diff $$lock $(VENV)/lock/$$lock; done

bench-mps: setup ## score lesion patch selection against the BUSI masks: make bench-mps DATA=folder WORKSPACE=folder
	python -m benchmarks.bench_mps --data "$(DATA)" $(if $(WORKSPACE),--workspace "$(WORKSPACE)")

bench-pretrain: setup ## time a pre-training step against the one of transformers
	python -m benchmarks.bench_pretrain

bench-predict: setup ## time amlp predict against the bare model, and watch its memory: make bench-predict DATA=folder MODEL=file
	python -m benchmarks.bench_predict --data "$(DATA)" $(if $(MODEL),--model "$(MODEL)")

bench-near-duplicates: setup ## plant changed copies among pictures and find them: make bench-near-duplicates DATA=folder
	python -m benchmarks.bench_near_duplicates --data "$(DATA)" $(if $(TABLE),--table "$(TABLE)") $(if $(GROWTH),--growth)

bench-gate: setup ## simulate how often the promotion gate promotes
	python -m benchmarks.bench_gate

pipeline-local: setup ## run the Kubeflow pipeline here, with S3, PostgreSQL and MLflow: make pipeline-local DATA=folder
	python -m devtools.local --replace $(if $(filter-out file undefined,$(origin DATA)),--data "$(DATA)")

images: ## build the container images, tagged by the commit
	@docker info > /dev/null || { echo "no Docker daemon answers: nothing was built" >&2; exit 2; }
	tag='$(TAG)' commit='$(COMMIT)' version="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' amlp/__init__.py)"; \
	for target in $(IMAGES); do \
	  DOCKER_BUILDKIT=1 docker build --target "$$target" --tag "$(IMAGE_PREFIX)$$target:$$tag" \
	    --build-arg COMMIT="$$commit" --build-arg VERSION="$$version" $(BUILD_FLAGS) .; \
	done; \
	docker image ls --filter reference="$(IMAGE_PREFIX)*:$$tag"

image-test: setup images ## build the images and run the tests that start them
	AMLP_TEST_IMAGES='$(IMAGE_PREFIX)*:$(TAG)' pytest -m image tests/image

# In this order, and with the table that they print.
test-cluster: setup ## acceptance on the Kubeflow that KF_PIPELINES_ENDPOINT and KUBECONFIG name (about two hours)
	pytest -m cluster tests/cluster -s

serve-test: setup ## serve a registered model where its own requirements alone are installed (gigabytes)
	pytest -m serve tests/serve

define K8S_WAIT
kubectl -n amlp rollout status statefulset/postgres --timeout=10m
kubectl -n amlp rollout status statefulset/seaweedfs --timeout=10m
kubectl -n amlp rollout status deployment/mlflow --timeout=10m
endef

k8s-dev-secrets: ## write random secrets for k8s/overlays/dev, once
	$(PYTHON) k8s/dev_secrets.py

k8s-dev: k8s-dev-secrets ## set MLflow, PostgreSQL and S3 up in the cluster that kubectl names, and wait for them
	kubectl apply -k k8s/overlays/dev
	$(K8S_WAIT)

k8s-single-user-secrets: k8s-dev-secrets ## copy the secrets that runs need to k8s/overlays/single-user
	install -d -m 700 k8s/overlays/single-user/runs/secrets
	install -m 600 k8s/overlays/dev/secrets/s3.env k8s/overlays/dev/secrets/mlflow-client.env \
	  k8s/overlays/single-user/runs/secrets

k8s-single-user: k8s-single-user-secrets ## the same beside a standalone Kubeflow, whose runs are in its own namespace
	kubectl apply -k k8s/overlays/single-user
	$(K8S_WAIT)

clean: ## remove what the pipeline wrote here, its cache and its MLflow database; .venv and workspaces stay
	rm -rf data models evaluation registration.json report.html dvc_plots .amlp mlflow.db mlartifacts .dvc/cache .dvc/tmp
