"""A process that holds one GGUF model and answers as edgeqkv.bench.protocol says, as far as it is asked here.

python llama_worker.py MODEL.gguf CACHE FLASH THREADS, where CACHE is f16 or q8_0 and FLASH on or off.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import llama_cpp as llama
import msgspec
import numpy as np

from edgeqkv.bench.memory import memory_of_this_process

CACHES = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0}
FLASH = {"on": llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, "off": llama.LLAMA_FLASH_ATTN_TYPE_DISABLED}
CAPACITY = 2048


class Worker:
    def __init__(self, path: str, cache: str, flash: str, threads: int) -> None:
        model_options = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(path.encode(), model_options)
        options = llama.llama_context_default_params()
        options.n_ctx = CAPACITY
        options.n_batch = options.n_ubatch = 512  # as llama.cpp has it
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = CACHES[cache]
        options.flash_attn_type = FLASH[flash]
        self.context = llama.llama_init_from_model(self.model, options)
        if not self.context:
            raise SystemExit(f"llama.cpp refuses {path} with cache {cache}, flash attention {flash}")
        self.cache = llama.llama_get_memory(self.context)
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.random = np.random.default_rng(0)
        self.depth = 0

    def fill(self, depth: int, rows: str) -> dict[str, object]:
        """``rows`` is a file of the rows up to ``depth``, which the first one writes; what they hold, the clock cannot tell."""
        path, none = rows.encode(), (llama.llama_token * 0)()
        if not Path(rows).is_file():
            self.prefill(0, depth)
            llama.llama_state_seq_save_file(self.context, path, 0, none, 0)
        elif not llama.llama_state_seq_load_file(self.context, path, 0, none, 0, ctypes.pointer(ctypes.c_size_t())):
            raise RuntimeError(f"llama.cpp does not read {rows}")
        self.depth = depth
        return {}

    def prefill(self, depth: int, tokens: int) -> dict[str, object]:
        ids = self.random.integers(self.vocab_size, size=tokens).astype(np.int32)
        self.rewind(depth)
        start = time.perf_counter()
        for first in range(0, tokens, 512):
            self.feed(ids[first : first + 512])
        self.best()
        return {"seconds": time.perf_counter() - start}

    def decode(self, depth: int, warm_up: int, steps: int) -> dict[str, object]:
        ids = self.random.integers(self.vocab_size, size=warm_up + steps).astype(np.int32)
        self.rewind(depth - warm_up)
        seconds = []
        for i in range(len(ids)):
            start = time.perf_counter()
            self.feed(ids[i : i + 1])
            self.best()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds[warm_up:]}

    def memory(self) -> dict[str, object]:
        return msgspec.to_builtins(memory_of_this_process())

    def rewind(self, depth: int) -> None:
        if depth > self.depth:
            raise RuntimeError(f"depth {depth} has not been filled, only {self.depth} positions")
        llama.llama_memory_seq_rm(self.cache, 0, depth, -1)
        self.depth = depth

    def feed(self, ids: np.ndarray) -> None:
        batch = llama.llama_batch_get_one(ids.ctypes.data_as(ctypes.POINTER(llama.llama_token)), len(ids))
        if llama.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.depth += len(ids)

    def logits(self) -> np.ndarray:
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), (self.vocab_size,))

    def best(self) -> int:
        return int(np.argmax(self.logits()))


def main() -> None:
    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, None)
    path, cache, flash, threads = sys.argv[1:]
    worker = Worker(path, cache, flash, int(threads))
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(worker, request.pop("do"))(**request)), flush=True)


if __name__ == "__main__":
    main()
