# make demo and make test are all that a new machine needs; both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODELS := qkv q-kv q-mqa
DEMO := build/demo
BENCH := build/bench
STORY := --prompt "Once upon a time there was a little princess" --tokens 120 --temperature 0.6 --top-k 40 --seed 7

.PHONY: help setup demo test kernels kernels-sanitize kernels-aarch64 build-aarch64 count-aarch64 lint format bench bench-attention clean

help:
	@echo "make demo             set up, then export, verify, run and compare the models in models/"
	@echo "make test             set up, then run every test"
	@echo "make kernels          build the C++ attention kernel and run its tests (part of make test)"
	@echo "make kernels-sanitize the same with address and undefined-behaviour sanitizers (part of make test)"
	@echo "make kernels-aarch64  cross-build it and run its tests under qemu-user, without and with the dot product"
	@echo "make count-aarch64    instructions that the kernel executes per token and layer on aarch64"
	@echo "make lint             ruff and mypy"
	@echo "make format           let ruff format the code"
	@echo "make bench            the 300M geometry with random weights: memory and speed, QKV against K-only"
	@echo "make bench-attention  the two forms of attention in the ONNX graph against each other"
	@echo "make clean            remove .venv and build"

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "edgeqkv needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "edgeqkv needs the Debian package python3-venv: apt-get install python3-venv" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: setup
	@for model in $(MODELS); do \
		$(BIN)/edgeqkv export models/$$model --out $(DEMO)/$$model --weights int8 || exit; \
	done
	@for model in $(MODELS); do \
		echo; echo "# $$model against PyTorch"; \
		$(BIN)/edgeqkv verify $(DEMO)/$$model --against models/$$model || exit; \
	done
	@for model in $(MODELS); do \
		echo; echo "# A story by $$model"; \
		$(BIN)/edgeqkv generate $(DEMO)/$$model $(STORY) || exit; \
	done
	@echo; echo "# Side by side"
	@$(BIN)/edgeqkv bench $(MODELS:%=$(DEMO)/%) --results $(DEMO)/results.jsonl

test: setup kernels kernels-sanitize
	$(BIN)/python -m pytest

kernels kernels-sanitize:
	@command -v cmake >/dev/null && command -v g++ >/dev/null \
		|| { echo "the kernel tests need the Debian packages cmake and g++: apt-get install cmake g++" >&2; exit 3; }
	@cmake -S runtimes/kernels -B build/$@ -DEDGEQKV_SANITIZE=$(if $(findstring sanitize,$@),ON,OFF) >/dev/null
	@cmake --build build/$@ --parallel 2 >/dev/null
	@build/$@/paths_test
	ctest --test-dir build/$@ --output-on-failure

build-aarch64:
	@command -v cmake >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null \
		|| { echo "this needs the Debian packages cmake, g++-aarch64-linux-gnu and qemu-user:" \
			"apt-get install cmake g++-aarch64-linux-gnu qemu-user" >&2; exit 3; }
	@cmake -S runtimes/kernels -B build/kernels-aarch64 \
		-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtimes/kernels/cmake/aarch64-linux-gnu.cmake >/dev/null
	@cmake --build build/kernels-aarch64 --parallel 2 >/dev/null

# A Cortex-A53 has no dot product, max has. Emulation is slow: of the random problems each 9th.
kernels-aarch64: build-aarch64
	@for cpu in cortex-a53:neon max:neon+dot; do \
		export QEMU_CPU=$${cpu%%:*} EDGEQKV_EXPECT_PATH=$${cpu##*:} EDGEQKV_TEST_EVERY=9; \
		qemu-aarch64 -L /usr/aarch64-linux-gnu build/kernels-aarch64/paths_test || exit; \
		ctest --test-dir build/kernels-aarch64 --output-on-failure --parallel 2 || exit; \
	done

count-aarch64: build-aarch64
	@command -v cc >/dev/null || { echo "this needs the Debian package gcc: apt-get install gcc" >&2; exit 3; }
	@sh runtimes/kernels/bench/count_aarch64.sh build/kernels-aarch64

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# mypy looks for packages in folders, so it is shown the tree as the build will map it.
	@rm -rf build/typed && mkdir -p build/typed/edgeqkv
	@ln -s $(CURDIR)/edgeqkv/* $(CURDIR)/export $(CURDIR)/runtimes build/typed/edgeqkv/
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p edgeqkv

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	@for variant in qkv:QKV q-kv:Q-K=V q-mqa:Q-MQA; do \
		model=$(BENCH)/models/$${variant%%:*}; \
		test -d $$model || $(BIN)/edgeqkv new paper-300m --variant $${variant##*:} --out $$model || exit; \
	done
	@for model in qkv q-kv q-mqa; do for cache in fp32 int8; do \
		$(BIN)/edgeqkv export $(BENCH)/models/$$model --out $(BENCH)/$$model-$$cache --cache $$cache || exit; \
	done; done
	$(BIN)/edgeqkv bench $(BENCH)/qkv-fp32 $(BENCH)/qkv-int8 $(BENCH)/q-kv-fp32 $(BENCH)/q-kv-int8 $(BENCH)/q-mqa-fp32 \
		$(BENCH)/q-mqa-int8 --depths 128,1024,2000 --threads 2 --results $(BENCH)/results.jsonl

bench-attention: setup
	$(BIN)/python -m edgeqkv.bench.attention

clean:
	rm -rf $(VENV) build
