# The front door. `make help` lists what it opens.
SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
# Asked of cargo, which may have been told another place by its environment or configuration; only when needed.
TARGET_DIR = $(or $(shell $(CARGO) metadata --format-version 1 --no-deps | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'),target)
MUSL_X86 := x86_64-unknown-linux-musl
MUSL_ARM := aarch64-unknown-linux-musl
ARGS ?=
PODS ?= 735
OPERATIONS ?= 10000000

.PHONY: help setup build demo test sim sim-long fleet crash reuse power-cut churn lint deny fuzz bench modes static static-arm64 packages

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## Install what building and testing need (apt or dnf)
	@scripts/setup.sh base

build: setup ## Build the development binary and the lab
	$(CARGO) build --workspace --bins

demo: build ## Two nodes of a simulated VPC, 24 real pods, a daemon killed with -9 (ARGS=--keep leaves it running)
	@$(TARGET_DIR)/debug/aws-cni-lab demo --binary $(TARGET_DIR)/debug/aws-cni $(ARGS)

test: setup ## Unit, property and integration tests against the lab
	scripts/run-tests.sh $(ARGS)

fleet: ## Fleets of up to 10,000 nodes under one account's EC2 limits: target/fleet/fleet.md and .svg (ARGS="--nodes 100")
	$(CARGO) run --quiet --release -p aws-cni-sim -- fleet --into $(TARGET_DIR)/fleet $(ARGS)

crash: setup ## 10,000 daemons killed with -9 while the store writes (AWS_CNI_KILLS=n)
	$(CARGO) test -p aws-cni --lib store::tests::crash -- --ignored --nocapture

reuse: setup ## The shortest time until an address is used again, over 100 daemons killed with -9 (eight minutes)
	$(CARGO) test -p aws-cni --test it reuse:: -- --ignored --nocapture

power-cut: setup ## A virtual machine's power cut while the store writes (ARGS="30 ext4" or "30 xfs")
	@scripts/setup.sh power
	TARGET_DIR=$(TARGET_DIR) scripts/power-cut.sh $(ARGS)

churn: setup ## Ten million ADDs and DELs through the store: size and time (PODS=735 OPERATIONS=10000000)
	@scripts/setup.sh static
	$(CARGO) build --release --target $(MUSL_X86) -p aws-cni-power
	@folder=$$(mktemp -d) && $(TARGET_DIR)/$(MUSL_X86)/release/aws-cni-power churn "$$folder/ipam" $(PODS) $(OPERATIONS); rm -rf "$$folder"

sim: ## A thousand simulated nodes for ten days each, with every fault; prints what was run (ARGS to the simulator)
	$(CARGO) run --quiet -p aws-cni-sim -- seeds --keep-going $(ARGS)

sim-long: ## A million simulated node-days, on all processors for hours; goes on where it was stopped
	$(CARGO) run --quiet --release -p aws-cni-sim -- long --progress $(TARGET_DIR)/sim-long $(ARGS)

lint: setup ## rustfmt, clippy without warnings, licences
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- --deny warnings
	scripts/check-scripts.sh

deny: ## Licences, bans, sources and advisories (needs the advisory database's host)
	@scripts/setup.sh deny
	$(CARGO) deny check

fuzz: ## libFuzzer on all that comes from outside (SECONDS_EACH=60, ARGS=target); needs nightly and cargo-fuzz
	scripts/fuzz.sh $(ARGS)

bench: setup ## Our ADD, DEL, bursts and growth beside the kernel floor, in one run
	scripts/bench.sh $(ARGS)

modes: setup ## Calls and seconds to grow, rest and shrink in each mode of the warm pool (ARGS="--quiet 60")
	scripts/bench.sh --modes $(ARGS)

static: ## The x86_64 musl release binary, verified static and measured
	@scripts/setup.sh static
	$(CARGO) build --release --target $(MUSL_X86) --bin aws-cni
	scripts/verify-static.sh $(TARGET_DIR)/$(MUSL_X86)/release/aws-cni

static-arm64: ## The same for Graviton, smoke-tested under qemu-user
	@scripts/setup.sh static-arm64
	$(CARGO) build --release --target $(MUSL_ARM) --bin aws-cni
	RUNNER=qemu-aarch64-static scripts/verify-static.sh $(TARGET_DIR)/$(MUSL_ARM)/release/aws-cni

packages: ## RPM and deb (not built yet: says so)
	@echo "make packages: RPM and deb packaging has not landed yet; 'make static' gives the binary." >&2; exit 1
