# What people run here. Everything works on a fresh Debian or Ubuntu with Rust on it; what is missing is installed, and said.

ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=SHOAL_LAB_DIR,SHOAL_LAB_KEEP,SHOAL_LAB_CONTAINERD,SHOAL_LAB_LONG,RUST_LOG,RUST_BACKTRACE)
BIN := $(or $(CARGO_TARGET_DIR),target)/debug
LAB := $(or $(SHOAL_LAB_DIR),.lab)
# The last one that knew neither preheats nor orders to seeds, nor schema 3.
REV ?= a9520e862bb5be9cde56675ee47ab67b54dcbac0

# Tests ask some libraries for more than programs do: where tests follow, programs are built as they need them, and not twice.
test lint upgrade-check: TARGETS := --bins --tests

.PHONY: help build tools demo test test-all test-quick upgrade-check api-check faults-page fuzz lint bench reference clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

build: ## Build all programs into target/debug
	@hack/prepare
	cargo build --workspace $(TARGETS)

tools: build ## Get the programs that the lab runs (containerd, a registry, crictl) into .lab
	$(BIN)/lab setup

demo: tools ## The walk-through: two clusters of real nodes pull one image (asks for root)
	$(ROOT) $(BIN)/lab demo --json $(LAB)/demo.json
	@echo "raw facts: $(LAB)/demo.json (judge them again: $(BIN)/lab check $(LAB)/demo.json)"

test: tools ## Everything, from unit to lab, with the table of faults at its end (asks for root)
	$(ROOT) $(BIN)/lab faults forget
	@status=0; \
	hack/with-root-for-lab cargo test --workspace --no-fail-fast || status=$$?; \
	$(BIN)/lab faults print; \
	$(BIN)/lab faults check || status=1; \
	exit $$status

test-all: export SHOAL_LAB_CONTAINERD := all
test-all: export SHOAL_LAB_LONG := 1
test-all: test ## The same with every fault on every containerd, long ones too: hours (asks for root)

faults-page: build ## Write docs/operate/faults.md from the rows of the last run, test-all as a rule
	page=$$($(BIN)/lab faults page) && echo "$$page" >docs/operate/faults.md

test-quick: ## What needs neither root nor tools
	@hack/prepare
	cargo test --workspace --lib --bins

upgrade-check: export SHOAL_LAB_OLD := $(abspath $(LAB)/old)
upgrade-check: tools ## Programs of an earlier revision beside today's, and upgrades in place; REV=… for another (asks for root)
	hack/old-programs $(REV) "$(SHOAL_LAB_OLD)"
	hack/with-root-for-lab cargo test --workspace --test lab -- --ignored versions::

api-check: build ## Ask a real shoal-control all that its OpenAPI description allows (installs schemathesis by pip if it is not there)
	hack/api-check

fuzz: ## Feed every parser of untrusted bytes with what nobody meant, 60 s each; FUZZ_SECONDS=… for longer
	hack/fuzz

lint: ## Format, clippy, documentation, import rules, generated pages; all must be clean
	@hack/prepare
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	cargo test --workspace --quiet --test import_rules
	cargo build --workspace $(TARGETS)
	hack/reference check

reference: build ## Write docs/reference from the programs
	hack/reference write

bench: tools ## Every measurement, beside the limit or beside what people use: docs/benchmarks.md (asks for root, takes two hours)
	cargo build --workspace --release
	$(ROOT) hack/bench $(BIN:debug=release)/lab $(LAB)/bench

clean: ## Remove what the lab made, tools and images included; the build stays (cargo clean)
	$(ROOT) rm -rf $(LAB)
