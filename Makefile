# The only front door. `make` alone prints the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/yolo-operator
export YOLO_CACHE := $(CACHE)
export ORT_DYLIB_PATH := $(CACHE)/onnxruntime/libonnxruntime.so
export ORT_DISABLE_TELEMETRY := 1
STAGE := tools/stage
comma := ,

.PHONY: help
help: ## Print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: fmt fmt-check lint check-each sizes doc
fmt: ## Format the sources
	cargo fmt --all
fmt-check: ## Fail if a source is not formatted
	cargo fmt --all -- --check
lint: ## clippy with warnings denied
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --package yolo-server --features cuda-preprocess --all-targets -- -D warnings
check-each: packages ## Check every crate alone, so that no crate leans on another's features, and the fuzz targets
	for c in crates/*; do (cd $$c && cargo check --quiet); done
	cp Cargo.lock fuzz/Cargo.lock && cargo check --quiet --manifest-path fuzz/Cargo.toml --target-dir target
sizes: ## Print the largest sources; fail past the cap
	tools/sizes
doc: ## Build the API documentation with warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

.PHONY: model pages reference fixtures fixtures-torch
MODEL_PYTHON := $(CACHE)/venv/bin/python
model: ## Fetch ONNX Runtime and the page-layout model; make its 1024, 640 and 320 variants
	@tools/model/venv
	@$(MODEL_PYTHON) tools/model/fetch.py
	@$(MODEL_PYTHON) tools/model/retarget.py
pages: ## Render 23 real pages to JPEG and PNG
	@tools/model/venv
	@$(MODEL_PYTHON) tools/model/pages.py
	@$(MODEL_PYTHON) tools/thumbnails.py
reference: model pages ## Run the pages through ONNX Runtime, OpenCV and numpy: what the server must answer
	@$(MODEL_PYTHON) tools/fixtures/reference.py
fixtures: ## Regenerate the committed pictures, tensors and tiny ONNX models
	@tools/model/venv
	@$(MODEL_PYTHON) tools/fixtures/fixtures.py
fixtures-torch: fixtures ## Regenerate what torchvision keeps and Ultralytics answers, as fixtures (PyTorch: several GB)
	@tools/bench/peers fastapi
	@$(CACHE)/peers/fastapi/bin/python tools/fixtures/torch_reference.py

.PHONY: crds generate verify-generated
crds: ## Write the CRD, its chart and docs/conditions.md from the types
	cargo run --quiet -p yolo-api --bin crdgen
generate: crds ## Write everything that is generated and committed
verify-generated: generate ## Fail if a generated file is not committed as it is generated
	git diff --exit-code -- crds charts/yolo-operator-crds docs/conditions.md

.PHONY: packages
packages: ## Install the Debian programs that the tests need, if missing
	@tools/packages promtool:prometheus redis-server nginx docker-registry cmake nasm c++:g++

.PHONY: checks ci test test-unit test-turbojpeg test-cluster test-e2e
checks: ## Everything that needs no cluster and no model, cheapest first
	$(STAGE) fmt-check 10 $(MAKE) --no-print-directory fmt-check
	$(STAGE) sizes 5 $(MAKE) --no-print-directory sizes
	$(STAGE) lint 600 $(MAKE) --no-print-directory lint
	$(STAGE) verify-generated 240 $(MAKE) --no-print-directory verify-generated
	$(STAGE) check-each 420 $(MAKE) --no-print-directory check-each
	$(STAGE) doc 120 $(MAKE) --no-print-directory doc
test: ## All tests: units and server, the real API server, the real node
	@tools/tally $(MAKE) --no-print-directory test-unit test-cluster test-e2e
# All three build the whole workspace's packages, so that one set of features, and one build of the dependencies, serves
# them. The pattern leaves out the test binaries that need a cluster: t1 and t3.
test-unit: packages model pages reference ## Tests without a cluster, the real model's included
	$(STAGE) test-unit 600 cargo test --workspace --lib --bins --test '???*'
	$(STAGE) test-doc 60 cargo test --quiet --workspace --doc
	$(MAKE) --no-print-directory test-turbojpeg
test-turbojpeg: packages reference ## Tests of the pictures with libjpeg-turbo: JPEG pixels equal to OpenCV's
	cargo clippy --package yolo-vision --features turbojpeg --all-targets -- -D warnings
	cargo check --quiet --package yolo-server --features turbojpeg
	$(STAGE) test-turbojpeg 120 cargo test --package yolo-vision --features turbojpeg --lib --test '*'
# Most of these tests wait for leases and windows to pass, so more of them run at once than there are cores.
test-cluster: cluster-binaries packages ## Tests against a real API server (T1)
	$(STAGE) test-cluster 420 cargo test --workspace --test t1 -- --test-threads=8
test-e2e: cluster-binaries image pages ## Tests on a real node (T3)
	$(STAGE) test-e2e 420 cargo test --workspace --test t3 -- --test-threads=1
ci: checks test ## What CI runs

.PHONY: fuzz-smoke
FUZZ_SECONDS ?= 60
fuzz-smoke: ## Fuzz every parser for FUZZ_SECONDS each (nightly Rust; corpora are kept in the cache)
	$(STAGE) fuzz-smoke 600 tools/fuzz $(FUZZ_SECONDS)

.PHONY: figures bench-operator bench-reality bench-scale-up bench-server bench-peers bench-vision bench-control soak
CONTROL_SEEDS ?= 5
CONTROL_SCALE ?= 0.5
REALITY ?=
bench-control: ## The planner beside other autoscalers on a simulated fleet (20 minutes; CONTROL_SEEDS=1 CONTROL_SCALE=0.25: two)
	cargo build --release --quiet -p yolo-simulator
	$(STAGE) bench-control 1500 target/release/yolo-simulator bench --seeds $(CONTROL_SEEDS) --scale $(CONTROL_SCALE)
bench-operator: ## What the operator costs: sampling 200 pods
	$(STAGE) bench-operator 600 cargo bench --quiet -p yolo-operator --bench sampler
bench-reality: model pages release ## The planner's model against the real server: p95, curve, real faults (15 minutes, root and cgroup v1; REALITY='emulated real faults')
	YOLO_FIGURES=$(CURDIR)/target/figures $(STAGE) bench-reality 1200 cargo bench --quiet -p yolo-operator --bench reality -- $(REALITY)
bench-scale-up: cluster-binaries image pages ## A real scale-up on the local cluster beside its simulation (9 minutes, root)
	YOLO_FIGURES=$(CURDIR)/target/figures $(STAGE) bench-scale-up 660 cargo bench --quiet -p yolo-operator --bench scale-up
bench-server: reference release ## What the server costs and how equal its answers are: memory, 23 pages
	YOLO_FIGURES=$(CURDIR)/target/figures YOLO_SERVER_PROGRAM=$(CURDIR)/target/release/yolo-server \
	  cargo test --quiet --workspace --test memory --test pages -- --nocapture --test-threads 1
soak: release ## As many requests of every kind as one a second makes in a day, per engine: memory, files and tasks stay flat
	YOLO_FIGURES=$(CURDIR)/target/figures YOLO_SERVER_PROGRAM=$(CURDIR)/target/release/yolo-server YOLO_SOAK_REQUESTS=86400 \
	  $(STAGE) soak 600 cargo test --quiet --workspace --test soak -- --nocapture --test-threads 1
PEERS ?= fastapi,litserve,mosec,bentoml,ray,triton
# '--rounds 0 --overload-rounds 0' measures the cache hits and needless inferences of the server alone.
PEERS_ARGS ?=
bench-peers: packages model pages ## The server beside its peers and the in-process ceiling (PEERS=mosec,…; several GB, 45 minutes)
	@tools/bench/peers $(subst $(comma), ,$(PEERS))
	cargo build --release --quiet -p yolo-operator -p yolo-server -p yolo-testkit -p yolo-bench
	for side in 640 320; do \
	  YOLO_FIGURES=$(CURDIR)/target/figures $(STAGE) bench-peers 1800 target/release/yolo-bench --peers $(PEERS) --side-px $$side $(PEERS_ARGS); done
bench-vision: model pages ## What the picture kernels cost beside OpenCV and numpy, in turn in one run
	YOLO_FIGURES=$(CURDIR)/target/figures $(STAGE) bench-vision 600 cargo bench --quiet -p yolo-vision --bench opencv
figures: ## Keep what was measured: docs/figures, docs/performance.md, the README's table
	tools/figures

.PHONY: cluster-binaries cluster-up cluster-down
INSTANCE ?= dev
cluster-binaries: ## Build or install what a local Kubernetes needs, if missing
	tools/cluster/build
cluster-up: cluster-binaries ## Start a local Kubernetes that stays (INSTANCE=dev)
	cargo run --quiet -p yolo-testkit --bin yolo-cluster -- --instance $(INSTANCE) up
cluster-down: ## Stop it; nothing of it is left
	cargo run --quiet -p yolo-testkit --bin yolo-cluster -- --instance $(INSTANCE) down

.PHONY: gpu-runtime gpu-check
# What the wheels bring, all in one folder.
GPU_LIBRARIES := $(CACHE)/gpu/lib
gpu-runtime: ## Fetch ONNX Runtime for NVIDIA GPUs with CUDA, cuDNN and TensorRT (several GB)
	@tools/gpu/fetch
# Twice: with the CPU's letterbox, and with the device's.
gpu-check: ## On a machine with an NVIDIA GPU: CUDA's and TensorRT's answers beside the CPU's, and their images a second
	@tools/gpu/present
	@$(MAKE) --no-print-directory reference gpu-runtime
	for features in "" cuda-preprocess; do \
	  LD_LIBRARY_PATH=$(GPU_LIBRARIES) ORT_DYLIB_PATH=$(GPU_LIBRARIES)/libonnxruntime.so YOLO_FIGURES=$(CURDIR)/target/figures \
	  $(STAGE) gpu-check 1800 cargo bench --quiet -p yolo-server --features "$$features" --bench gpu; done

.PHONY: release image image-cuda helm-lint
HELM := $(CACHE)/cluster/$(shell . tools/cluster/versions; echo $$KUBERNETES_VERSION)/helm
release: ## Build the operator, the server and the demo's driver, optimised
	cargo build --release --quiet -p yolo-operator -p yolo-server -p yolo-testkit
image: cluster-binaries model release ## Build both container images into target/images
	images/build
image-cuda: cluster-binaries release gpu-runtime ## Build the server's image for NVIDIA GPUs (several GB)
	images/build cuda
helm-lint: cluster-binaries ## Check both charts
	$(HELM) lint --strict --quiet charts/*

.PHONY: demo demo-down
CONTEXT ?=
# With CONTEXT the cluster pulls the charts' own images, unless DEMO_ARGS='--set image.repository=…' names others.
DEMO_ARGS ?=
demo: $(if $(CONTEXT),,cluster-binaries image) pages release ## Watch two services meet their targets (CONTEXT= uses your cluster)
	$(STAGE) demo 600 target/release/yolo-demo run --context "$(CONTEXT)" $(DEMO_ARGS)
demo-down: release ## Stop the demo's cluster; nothing of it is left
	target/release/yolo-demo down
