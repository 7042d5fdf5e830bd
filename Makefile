# The two commands: `make demo` shows it, `make test` proves it. Each installs what it needs.
.PHONY: demo test bench deny install clean fuzz package

export PATH := $(HOME)/.cargo/bin:$(PATH)

install:
	@tools/install

## Roast with three simulated machines; the console is at http://127.0.0.1:8080. Ctrl-C stops all.
demo:
	@tools/install demo
	cargo build --workspace --bins
	@tools/demo

## Every test, against real servers that the tests start themselves.
test:
	@tools/install test
	cargo nextest run --workspace
	cd cloud/services/console/web && npm run --silent check

deny:
	@tools/install deny
	cargo deny --log-level error check bans licenses sources

## Figures of this machine; see docs/reference/benchmarks.md.
bench:
	@tools/install test
	cargo build --release --bin simcorp --bin simcorp-bench
	target/release/simcorp-bench ingest --machines 1000 --rate 10000 --seconds 20

## A minute of each decoder's fuzz target.
fuzz:
	@tools/install fuzz
	cd fuzz && for target in frame receipt envelope cose alog recording workbook machines profile purpose; do \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run $$target -- -max_total_time=60 || exit 1; done

## The gateway's package, installed and lived with under a systemd of its own. Needs root.
package:
	@tools/install package
	packaging/build-deb
	packaging/tests/run

clean:
	cargo clean
	rm -rf var cloud/services/console/web/node_modules
