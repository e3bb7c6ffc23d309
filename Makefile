# make demo   from a fresh machine to generated text;  make test   everything that is tested without a GPU
CARGO ?= cargo
PROFILE ?= release
LOOPC = target/$(PROFILE)/loopc

.PHONY: setup build demo test lint bench clean

setup:            ## LLVM and MLIR 22 from Debian, cargo-nextest if it is missing
	./.ci/setup

build: setup
	$(CARGO) build --release

demo: build       ## compiles a small checkpoint that is in the repository and generates text with it
	./tests/demo.sh $(LOOPC)

test: setup
	$(CARGO) nextest run --workspace --no-fail-fast

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: build      ## prefill and decoding of the bundled model; the peers are compared by benches/peers.sh
	$(LOOPC) bench tests/models/austen --context 256

clean:
	$(CARGO) clean
