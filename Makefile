# make demo   from a fresh machine to generated text;  make test   everything that is tested without a GPU;  make gpu   what wants one
CARGO ?= cargo
PROFILE ?= release
LOOPC = target/$(PROFILE)/loopc

.PHONY: setup build demo test gpu emulate lint bench clean

setup:            ## LLVM and MLIR 22 from Debian, cargo-nextest if it is missing
	./.ci/setup

build: setup
	$(CARGO) build --release

demo: build       ## compiles a small checkpoint that is in the repository and generates text with it
	./tests/demo.sh $(LOOPC)

test: setup
	$(CARGO) nextest run --workspace --no-fail-fast

gpu: build        ## on a machine with an NVIDIA GPU: every op, mode and golden, text, training and times
	./tests/gpu/run.sh $(LOOPC)

emulate: build    ## the same kernels on the CPU: PTX is evaluated, which takes its time
	$(CARGO) build --release -p ptx-driver
	./tests/gpu/emulate.sh target/release/libptx_driver.so $(LOOPC) check --ops --modes --cases 1 --limit 600 --device cuda

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: build      ## prefill and decoding of the bundled model; the peers are compared by benches/peers.sh
	$(LOOPC) bench tests/models/austen --context 256

clean:
	$(CARGO) clean
