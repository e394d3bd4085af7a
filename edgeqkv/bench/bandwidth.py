"""The machine's read bandwidth, sampled in the rounds of a run by a process of its own, whose memory nobody measures."""

from contextlib import suppress

from edgeqkv.bench.protocol import ReadRate
from edgeqkv.bench.record import APP, Bandwidth
from edgeqkv.bench.running import Bench
from edgeqkv.bench.worker_process import MeasuredProcess
from edgeqkv.errors import EdgeQKVError

READ_MIB = 256  # several times what the caches of a phone or of a small server hold
LEAST_MIB = 16
SHARE = 8  # of the available memory, at the most one part in so many
ROUNDS = 5  # in which it is sampled


class BandwidthMeter:
    """Samples of one run; ``earlier`` are those of a run that is gone on with. An app has no process for this."""

    def __init__(self, bench: Bench, threads: int, earlier: Bandwidth | None) -> None:
        self._bench, self._counts = bench, (1, threads)
        self._samples = (list(earlier.one_thread), list(earlier.threads)) if earlier else ([], [])
        self._source = earlier.source if earlier else ""
        self._worker: MeasuredProcess | None = None
        self._able = bench.timed and bench.program.name != APP

    def sample(self) -> None:
        """What cannot be measured is left out: the run is about other things."""
        if not self._able or len(self._samples[0]) >= ROUNDS:
            return
        available = self._bench.environment.memory_available_bytes
        mib = READ_MIB if available is None else min(READ_MIB, max(LEAST_MIB, available // SHARE // 2**20))
        try:
            if self._worker is None:
                self._worker = self._bench.program.start(self._bench.device, "the read bandwidth", "read bandwidth")
                self._bench.stop.workers.append(self._worker)
            rates = [self._worker.ask(ReadRate, "bandwidth", threads=count, mib=mib) for count in self._counts]
        except EdgeQKVError:
            self._able = False  # a runner of an older version, or no memory
            return
        self._source = rates[0].source
        for samples, rate in zip(self._samples, rates, strict=True):
            samples.append(rate.bytes_per_s)

    @property
    def found(self) -> Bandwidth | None:
        one_thread, threads = map(tuple, self._samples)
        return Bandwidth(one_thread=one_thread, threads=threads, source=self._source) if one_thread else None

    def close(self) -> None:
        if self._worker is not None:
            with suppress(EdgeQKVError):
                self._worker.close()
