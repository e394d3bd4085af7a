# make demo and make test are all that a new machine needs; both set everything up first.
PYTHON ?= python3
SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
MODELS := qkv q-kv q-mqa
DEMO := build/demo
BENCH := build/bench

NATIVE := $(shell find runtimes -path runtimes/android -prune -o \( -name CMakeLists.txt -o -name '*.cc' -o -name '*.h' \) -print)
ORT_HEADERS := build/onnxruntime-headers
CPP := $(shell find runtimes examples tests packaging \( -name '*.cc' -o -name '*.h' -o -name '*.c' \) -print)
OLDEST := build/onnxruntime-1.23.2/onnxruntime/capi/libonnxruntime.so.1.23.2

.PHONY: help setup demo test android-jvm android-app-test kernels kernels-sanitize kernels-aarch64 build-aarch64 \
	count-aarch64 count-kernel-aarch64 bench-kernel clang clang-format runner-aarch64 android-native apk check-ort-api wheels lint format bench \
	bench-prefill bench-executorch bench-8k bench-mla bench-sessions bench-memory bench-linear bench-attention \
	bench-int4 compare-int4 bench-bundles bench-peers docs clean

help:
	@echo "make demo             set up, then the models in models/, and what K-only gains at 300M parameters: under ten minutes"
	@echo "make test             set up, then run every test"
	@echo "make android-jvm      the Kotlin library for Android, and its tests on this machine's JVM (part of make test)"
	@echo "make android-app-test the same, and the demo app's classes and tests (part of make test)"
	@echo "make kernels          build the C++ attention kernel and run its tests (part of make test)"
	@echo "make kernels-sanitize the same with address and undefined-behaviour sanitizers (part of make test)"
	@echo "make kernels-aarch64  cross-build it and run its tests under qemu-user: NEON, with the dot product, with i8mm"
	@echo "make runner-aarch64   cross-build edgeqkv-run, to bench it under qemu-user (ids only)"
	@echo "make android-native   what goes to arm64 Android, without an NDK: the JNI library, ONNX Runtime, edgeqkv-run"
	@echo "make apk              the demo app for Android as an APK, without Google's SDK"
	@echo "make count-aarch64    aarch64 instructions of a decoded token: the kernel alone, and the 300M models"
	@echo "make count-kernel-aarch64   the same of the kernel alone, which takes a minute"
	@echo "make bench-kernel     the attention kernel alone, against a plain read and a loop of products"
	@echo "make wheels           the wheels for Linux on x86-64 and aarch64, into build/wheels, compiled by zig (about 4 minutes)"
	@echo "make docs             the documentation as a site, in build/site; a broken link is an error"
	@echo "make clang            all C++ by clang 19, its warnings as errors, and the kernel's tests with it"
	@echo "make lint             ruff, mypy and clang-format"
	@echo "make format           let ruff and clang-format format the code"
	@echo "make check-ort-api    our declarations of ONNX Runtime's C API against the official header (fetched with npm)"
	@echo "make bench            the 300M geometry with random weights: memory, speed, and share of the read bandwidth, on each engine"
	@echo "make bench-prefill    the same bundles: prompts of 512 tokens"
	@echo "make bench-executorch the same on ExecuTorch, against QKV with ExecuTorch's own attention"
	@echo "make bench-8k         the same with 8192 positions"
	@echo "make bench-mla        Youtu-LLM's and MiniCPM3's latent attention: one cached row against K and V of every head"
	@echo "make bench-sessions   saving, restoring and forking a session against prefilling it again"
	@echo "make bench-memory     what the memory of a process consists of, for each engine"
	@echo "make bench-linear     ONNX Runtime's quantised linear alone, by tokens, block and bits; MLA's products against one"
	@echo "make bench-int4       int4 weights against int8: files, decoding, and what compare-int4 prints"
	@echo "make compare-int4     the quality of each way to round to int4, on the shipped models"
	@echo "make bench-attention  the forms of attention in the ONNX graph against each other"
	@echo "make bench-peers      llama.cpp in turns with ours at 300M; compiles it once, about 10 minutes"
	@echo "make clean            remove .venv and build"

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "edgeqkv needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "edgeqkv needs the Debian package python3-venv: apt-get install python3-venv" >&2; exit 3; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@# Before edgeqkv: its ExecuTorch session, which it is built with here, needs the package executorch.
	$(BIN)/pip install --quiet torch==2.13.0 executorch==1.5.1
	EDGEQKV_EXECUTORCH=ON $(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: setup
	@$(BIN)/edgeqkv demo $(MODELS:%=models/%) --out $(DEMO)

test: setup kernels kernels-sanitize $(OLDEST)
	EDGEQKV_OLDEST_ONNXRUNTIME=$(CURDIR)/$(OLDEST) $(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The oldest ONNX Runtime that libedgeqkv runs on.
$(OLDEST): | setup
	@rm -rf build/onnxruntime-1.23.2 && mkdir -p build/onnxruntime-1.23.2
	@$(BIN)/pip download --quiet --no-deps --only-binary=:all: --dest build/onnxruntime-1.23.2 onnxruntime==1.23.2
	@cd build/onnxruntime-1.23.2 && ../../$(BIN)/python -m zipfile -e onnxruntime-*.whl . && rm onnxruntime-*.whl

android-jvm: setup
	sh runtimes/android/jvm.sh build/android/jvm $(BIN)/python

android-app-test: android-jvm
	sh android_demo/app/jvm.sh build/android/app-jvm $(BIN)/python

# Sanitized, AVX-VNNI's path is encoded as AVX-512, so that it is tested where a CPU has only that; otherwise where a CPU has AVX-VNNI.
kernels kernels-sanitize:
	@command -v cmake >/dev/null && command -v g++ >/dev/null \
		|| { echo "the kernel tests need the Debian packages cmake and g++: apt-get install cmake g++" >&2; exit 3; }
	@cmake -S runtimes/kernels -B build/$@ $(if $(findstring sanitize,$@),-DEDGEQKV_SANITIZE=ON -DEDGEQKV_AVXVNNI_AS_AVX512=ON) >/dev/null
	@cmake --build build/$@ --parallel 2 >/dev/null
	@build/$@/paths_test
	ctest --test-dir build/$@ --output-on-failure

# Phones, Apple's and zig's builds are clang's. GCC 12's own std::stable_sort calls what it calls deprecated, hence the flag.
clang: setup
	@command -v cmake >/dev/null && command -v clang++-19 >/dev/null \
		|| { echo "this needs the Debian packages cmake and clang-19: apt-get install cmake clang-19" >&2; exit 3; }
	@cmake -S runtimes -B build/clang -DCMAKE_CXX_COMPILER=clang++-19 -DCMAKE_CXX_FLAGS=-Wno-deprecated-declarations \
		-DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DEDGEQKV_EXECUTORCH=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-DEDGEQKV_KERNEL_TESTS=ON -DEDGEQKV_NATIVE_TESTS=ON >/dev/null
	@cmake --build build/clang --parallel 2 >/dev/null
	@build/clang/kernels/paths_test
	ctest --test-dir build/clang/kernels --output-on-failure

build-aarch64:
	@command -v cmake >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null \
		|| { echo "this needs the Debian packages cmake, g++-aarch64-linux-gnu and qemu-user:" \
			"apt-get install cmake g++-aarch64-linux-gnu qemu-user" >&2; exit 3; }
	@cmake -S runtimes/kernels -B build/kernels-aarch64 \
		-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/runtimes/kernels/cmake/aarch64-linux-gnu.cmake >/dev/null
	@cmake --build build/kernels-aarch64 --parallel 2 >/dev/null

# A Cortex-A53 has no dot product, a Neoverse N1 no matrix products, max has both and runs all paths. Emulation is slow: of the
# random problems each 9th, and on the N1, which adds only that nothing newer than its own path is asked of it, nothing else.
kernels-aarch64: build-aarch64
	@for cpu in cortex-a53:neon:. neoverse-n1:neon+dot:^attention_test max:neon+i8mm:.; do \
		IFS=: read QEMU_CPU EDGEQKV_EXPECT_PATH tests <<< $$cpu; \
		export QEMU_CPU EDGEQKV_EXPECT_PATH EDGEQKV_TEST_EVERY=9; \
		qemu-aarch64 -L /usr/aarch64-linux-gnu build/kernels-aarch64/paths_test || exit; \
		ctest --test-dir build/kernels-aarch64 --output-on-failure --parallel 2 --tests-regex $$tests || exit; \
	done

count-kernel-aarch64: build-aarch64
	@command -v cc >/dev/null || { echo "this needs the Debian package gcc: apt-get install gcc" >&2; exit 3; }
	@sh runtimes/kernels/bench/count_aarch64.sh build/kernels-aarch64

count-aarch64: count-kernel-aarch64 runner-aarch64 bench-bundles
	@cp build/kernels-aarch64/instruction_count.so build/runner-aarch64/
	@echo; $(BIN)/python experiments/aarch64_instructions.py build/runner-aarch64 $(BENCH)/qkv-fp32:stock $(BENCH)/q-kv-int8:fused \
		$(BENCH)/q-mqa-int8:fused

# For emulated devices, whose ids are compared and whose instructions are counted.
runner-aarch64: setup
	@command -v cmake >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null \
		|| { echo "this needs the Debian packages cmake and g++-aarch64-linux-gnu:" \
			"apt-get install cmake g++-aarch64-linux-gnu" >&2; exit 3; }
	@sh runtimes/run/aarch64.sh build/runner-aarch64 $(BIN)/python

android-native:
	@sh runtimes/android/bionic/build.sh build/android

apk: setup android-native
	@$(BIN)/python android_demo/apk/build.py build/android $(BIN)/edgeqkv

wheels: setup
	@$(BIN)/python packaging/wheels.py build/wheels

# The header is ONNX Runtime's (MIT), from an npm package that carries it; ONNXRUNTIME_INCLUDE_DIR names another place.
check-ort-api:
	@if [ -z "$$ONNXRUNTIME_INCLUDE_DIR" ] && [ ! -f $(ORT_HEADERS)/headers/onnxruntime_c_api.h ]; then \
		command -v npm >/dev/null || { echo "set ONNXRUNTIME_INCLUDE_DIR, or install the Debian package npm" >&2; exit 3; }; \
		mkdir -p $(ORT_HEADERS) && cd $(ORT_HEADERS) && npm pack --silent com.github.asus4.onnxruntime@0.4.9 \
		&& tar xzf *.tgz --wildcards --no-anchored --strip-components=3 '*/onnxruntime.aar' \
		&& $(PYTHON) -m zipfile -e onnxruntime.aar . && rm *.tgz; \
	fi
	@cmake -S runtimes -B build/ort-api \
		-DONNXRUNTIME_INCLUDE_DIR="$${ONNXRUNTIME_INCLUDE_DIR:-$(CURDIR)/$(ORT_HEADERS)/headers}" >/dev/null
	cmake --build build/ort-api --target edgeqkv_onnx_api_check

docs: setup
	$(BIN)/python docs/generate build/docs
	$(BIN)/zensical build --clean --strict --config-file mkdocs.yml
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server --directory build/site"

lint: setup clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p edgeqkv
	clang-format-19 --dry-run --Werror $(CPP)

format: setup clang-format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	clang-format-19 -i $(CPP)

clang-format:
	@command -v clang-format-19 >/dev/null \
		|| { echo "the C++ is formatted by the Debian package clang-format-19: apt-get install clang-format-19" >&2; exit 3; }

# Random weights of the paper's geometry: they prove memory and speed, nothing else.
BUNDLES := $(addprefix $(BENCH)/,qkv-fp32 q-kv-int8 q-mqa-int8)

bench-bundles: setup $(BENCH)/exported

# ExecuTorch takes minutes for each.
$(BENCH)/exported: $(wildcard export/*.py export/*/*.py) edgeqkv/decoder.py edgeqkv/cache.py edgeqkv/manifest.py | setup
	@for variant in qkv:QKV:fp32 q-kv:Q-K=V:int8 q-mqa:Q-MQA:int8; do \
		IFS=: read name title cache <<< $$variant; \
		model=$(BENCH)/models/$$name; \
		test -d $$model || $(BIN)/edgeqkv new paper-300m --variant $$title --out $$model || exit; \
		$(BIN)/edgeqkv export $$model --out $(BENCH)/$$name-$$cache --cache $$cache --target onnx --target executorch || exit; \
	done
	$(BIN)/edgeqkv export $(BENCH)/models/qkv --out $(BENCH)/qkv-sdpa --target executorch --kernel stock
	@touch $@

bench: bench-bundles
	$(BIN)/edgeqkv bench $(BUNDLES) --runtimes onnx,executorch --kernels stock,fused --depths 16,128,1024,2000 --prompt 64 \
		--threads 2 --results $(BENCH)/results.jsonl

bench-prefill: bench-bundles
	$(BIN)/edgeqkv bench $(BUNDLES) --runtimes onnx,executorch --kernels stock,fused --depths 512 --prompt 512 --rounds 2 --steps 1 \
		--threads 2 --results $(BENCH)/results.jsonl

# ExecuTorch's own attention needs torch in the process, so that all of these run in Python.
bench-executorch: bench-bundles
	$(BIN)/edgeqkv bench $(BENCH)/qkv-sdpa $(BUNDLES) --runtimes executorch --runner python --depths 16,2000 --prompt 64 --threads 2 \
		--results $(BENCH)/results.jsonl

bench-8k: setup
	@for variant in qkv:QKV:fp32 q-kv:Q-K=V:int8 q-mqa:Q-MQA:int8; do \
		IFS=: read name title cache <<< $$variant; \
		model=$(BENCH)/models/$$name-8k; \
		test -d $$model || $(BIN)/edgeqkv new paper-300m-8k --variant $$title --out $$model || exit; \
		out=$(BENCH)/$$name-8k-$$cache; \
		test -d $$out || $(BIN)/edgeqkv export $$model --out $$out --cache $$cache --target onnx --target executorch || exit; \
	done
	$(BIN)/edgeqkv bench $(BENCH)/qkv-8k-fp32 $(BENCH)/q-kv-8k-int8 $(BENCH)/q-mqa-8k-int8 --runtimes onnx,executorch \
		--kernels stock,fused --depths 16,2000,8000 --prompt 64 --threads 2 --results $(BENCH)/results.jsonl

# Random weights at the full width of two published models, with so many of their layers (32 and 62): what a layer costs is what is
# asked. Rows are zeros, since filling 32,000 positions would take hours; a run of 512 tokens is prefilled in full.
MLA_MODELS := youtu-2b minicpm3-4b
MLA_LAYERS := 4
MLA_OPTIONS := --kernels fused --no-baseline --threads 2 --rounds 5 --results $(BENCH)/mla.jsonl

bench-mla: setup
	@for name in $(MLA_MODELS); do \
		model=$(BENCH)/models/$$name; \
		test -d $$model || $(BIN)/edgeqkv new $$name --layers $(MLA_LAYERS) --out $$model || exit; \
		for form in absorbed:int8 expanded:fp16 expanded:fp32; do \
			IFS=: read mla cache <<< $$form; out=$(BENCH)/$$name-$$mla-$$cache; \
			test -d $$out || $(BIN)/edgeqkv export $$model --out $$out --mla $$mla --cache $$cache || exit; \
		done; \
		$(BIN)/edgeqkv bench $(BENCH)/$$name-absorbed-int8 $(BENCH)/$$name-expanded-fp16 $(BENCH)/$$name-expanded-fp32 \
			--depths 128,2048,8192,32000 --prompt 16 --fill zeros $(MLA_OPTIONS) || exit; \
		$(BIN)/edgeqkv bench $(BENCH)/$$name-absorbed-int8 $(BENCH)/$$name-expanded-fp16 $(BENCH)/$$name-expanded-fp32 \
			--depths 512 --prompt 512 --steps 2 $(MLA_OPTIONS) || exit; \
	done

bench-sessions: bench-bundles
	$(BIN)/python experiments/session_files.py $(BUNDLES)

bench-memory: bench-bundles
	$(BIN)/python experiments/memory_parts.py $(foreach bundle,$(BUNDLES),$(bundle):onnx:stock $(bundle):onnx:fused \
		$(bundle):executorch:fused)

bench-linear: setup
	$(BIN)/python experiments/linear_speed.py
	@echo; $(BIN)/python experiments/mla_products.py

bench-kernel:
	@command -v cmake >/dev/null && command -v g++ >/dev/null \
		|| { echo "the kernel needs the Debian packages cmake and g++: apt-get install cmake g++" >&2; exit 3; }
	@cmake -S runtimes/kernels -B build/kernels >/dev/null
	@cmake --build build/kernels --parallel 2 --target attention_bench >/dev/null
	@build/kernels/attention_bench goals

bench-attention: setup
	$(BIN)/python experiments/attention_forms.py

# The int8 bundle is the one of bench-bundles. What is there is kept: remove build/bench/q-mqa-int4* to export anew.
bench-int4: setup
	@model=$(BENCH)/models/q-mqa; \
	test -d $$model || $(BIN)/edgeqkv new paper-300m --variant Q-MQA --out $$model || exit; \
	for weights in int8 int4 int4-all; do \
		out=$(BENCH)/q-mqa-$$weights; \
		test -d $$out || $(BIN)/edgeqkv export $$model --out $$out --weights $$weights --cache int8 --target onnx \
			--target executorch || exit; \
	done
	@$(BIN)/python experiments/int4_speed.py $(addprefix $(BENCH)/q-mqa-,int8 int4 int4-all)
	@echo; echo "# Quality, on the shipped models"; $(MAKE) --no-print-directory compare-int4

compare-int4: setup
	$(BIN)/python experiments/int4_methods.py

# Compiled for this machine's processor, and kept. The versions are those of the extra "peers".
PEERS := build/peers
PEER_PACKAGES := $(shell sed -n '/^peers = /{s/^.*\[//;s/\]//;s/", "/" "/gp}' pyproject.toml)
LLAMA := $(filter llama-cpp-python==%,$(subst ",,$(PEER_PACKAGES)))

$(PEERS)/wheels/$(subst ==,-,$(LLAMA)).built: | setup
	@command -v cmake >/dev/null && command -v g++ >/dev/null \
		|| { echo "llama.cpp needs the Debian packages cmake and g++: apt-get install cmake g++" >&2; exit 3; }
	CMAKE_ARGS=-DLLAVA_BUILD=OFF CMAKE_BUILD_PARALLEL_LEVEL=2 $(BIN)/pip wheel --no-deps --wheel-dir $(PEERS)/wheels "$(LLAMA)"
	@touch $@

bench-peers: bench-bundles $(PEERS)/wheels/$(subst ==,-,$(LLAMA)).built
	@$(BIN)/pip install --quiet --find-links $(PEERS)/wheels $(PEER_PACKAGES)
	@for name in q-kv q-mqa; do \
		out=$(BENCH)/$$name-int4; \
		test -d $$out || $(BIN)/edgeqkv export $(BENCH)/models/$$name --out $$out --weights int4 --cache int8 --target onnx \
			--target executorch || exit; \
	done
	@for bits in 8 4 8 4 8 4; do $(BIN)/python experiments/peers/peers.py $(PEERS) $$bits || exit; done

clean:
	rm -rf $(VENV) build
