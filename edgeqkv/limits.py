"""How much of something a file or a caller may ask for: far above what is sensible, so that sums stay within 64 bits and a
mistyped number takes no memory. The C library has the same, in runtimes/native/src/limits.h."""

from edgeqkv.errors import EdgeQKVError

LAYERS = 4096
POSITIONS = 2**24
IDS = 2**24
CACHE_BYTES = 2**40
THREADS = 256
JSON_BYTES = 64 * 2**20  # the largest manifest, with static scales, is a few MB
TOKENIZER_BYTES = 64 * 2**20
HEADER_BYTES = 16 * 2**20  # of a session file


def check_threads(threads: int | None) -> None:
    """None is the runtime's choice."""
    if threads is not None and not 1 <= threads <= THREADS:
        raise EdgeQKVError(f"threads must be 1 to {THREADS}, found {threads}")
