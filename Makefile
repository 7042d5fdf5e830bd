# `make demo` shows the product, `make test` proves it. Each target installs what it needs.
.PHONY: help demo test lint doc coverage deny bench attack fuzz install clean package
.DEFAULT_GOAL := help

export PATH := $(HOME)/.cargo/bin:$(PATH)

## help: list the targets
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## install: install what the tests need (Debian packages, cargo-nextest, Python tools)
install:
	@tools/install

## demo: roast with three simulated machines; the console is at http://127.0.0.1:8080, Ctrl-C stops
demo:
	@tools/install demo
	cargo build --bin simcorp --bin simcorp-edge
	@tools/demo

## test: run every test, against real servers that the tests start themselves
test:
	@tools/install test
	@tools/test
	cargo test --workspace --doc --quiet
	cd cloud/services/console/web && npm run --silent check

## lint: check format, clippy and wording
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	@tools/check-words

## doc: build the documentation of all crates; a broken link is an error
doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet

## coverage: measure which lines the tests reach (report in target/llvm-cov/html)
coverage:
	@tools/install coverage
	cargo llvm-cov nextest --workspace --html

## deny: check licences, sources, duplicate crates and, where they can be had, advisories
deny:
	@tools/install deny
	cargo deny --log-level error check bans licenses sources
	@tools/check-advisories

## bench: measure this machine; see docs/reference/benchmarks.md
bench:
	@tools/install test
	cargo build --profile dist --bin simcorp --bin simcorp-bench
	target/dist/simcorp-bench ingest --machines 1000 --rate 10000 --seconds 20

## attack: attack the control plane and a gateway for ten minutes beside an honest tenant, on both defaults
attack:
	@tools/install test
	cargo build --profile dist --bin simcorp --bin simcorp-bench --bin simcorp-edge
	target/dist/simcorp-bench attack
	target/dist/simcorp-bench attack --database sqlite --broker embedded

# How long each fuzz target runs, in seconds. An hour in all is 3600 / the number of targets, which
# `cd fuzz && cargo fuzz list | wc -l` counts: 156 for 23 targets.
FUZZ_SECONDS ?= 60

## fuzz: run each fuzz target (decoders, file readers, LAN ports) for a minute, or FUZZ_SECONDS=156
fuzz:
	@tools/install fuzz
	@tools/fuzz $(FUZZ_SECONDS)

## package: build the gateway's package and try it under a systemd of its own (needs root)
package:
	@tools/install package
	packaging/build-deb
	packaging/tests/run

## clean: remove build results, demo data and downloaded modules
clean:
	cargo clean
	rm -rf var cloud/services/console/web/node_modules
