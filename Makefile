# The only front door. `make` alone prints the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/yolo-operator
export YOLO_CACHE := $(CACHE)
export ORT_DYLIB_PATH := $(CACHE)/onnxruntime/libonnxruntime.so
STAGE := tools/stage

.PHONY: help
help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: fmt fmt-check lint check-each sizes doc
fmt: ## Format the sources
	cargo fmt --all
fmt-check: ## Fail if a source is not formatted
	cargo fmt --all -- --check
lint: ## clippy with warnings denied
	cargo clippy --workspace --all-targets -- -D warnings
check-each: ## Check every crate alone, so that no crate leans on another's features
	for c in crates/*; do (cd $$c && cargo check --quiet); done
sizes: ## Print the largest sources; fail past the cap
	tools/sizes
doc: ## Build the API documentation with warnings denied
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
