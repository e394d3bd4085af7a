package io.github.edgeqkv

import org.junit.jupiter.api.Test
import java.io.File

/** Memory, descriptors and threads of this process, by /proc/self. */
class LeaksTest {
    private class Counts {
        val kib = status("VmRSS")
        val threads = status("Threads")
        val files = File("/proc/self/fd").list()!!.size

        private fun status(name: String): Int =
            File("/proc/self/status").readLines().first { it.startsWith("$name:") }.filter { it.isDigit() }.toInt()
    }

    private fun assertNoGrowth(warmUp: Int, times: Int, kib: Int, work: () -> Unit) {
        repeat(warmUp) { work() }
        System.gc()
        val before = Counts()
        repeat(times) { work() }
        System.gc()
        val after = Counts()
        // Java's own come and go.
        check(after.threads - before.threads < 10) { "${after.threads - before.threads} threads more after $times times" }
        check(after.files - before.files < 10) { "${after.files - before.files} open files more after $times times" }
        check(after.kib - before.kib < kib) { "${after.kib - before.kib} KiB more after $times times" }
    }

    @Test
    fun `10,000 sessions`() {
        TestData.open("small").use { bundle ->
            // Of caches of tens of KiB each; the Java compiler's own takes a few MiB.
            assertNoGrowth(warmUp = 2_000, times = 10_000, kib = 8 * 1024) {
                bundle.newSession().use { session ->
                    session.step(1)
                    session.logits()
                }
            }
        }
    }

    @Test
    fun `hundreds of bundles`() {
        val folder = File(TestData.folder, "small")
        assertNoGrowth(warmUp = 100, times = 400, kib = 8 * 1024) {
            EdgeQKV.open(folder, TestData.options()).use { bundle -> bundle.newSession().use { it.step(1) } }
        }
    }

    @Test
    fun `thousands of errors, texts and forks`() {
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session ->
                session.prefill(bundle.encode("Once upon a time"))
                assertNoGrowth(warmUp = 1_000, times = 5_000, kib = 8 * 1024) {
                    assertRefused(EdgeQKVException.Code.BAD_INPUT, "token id -1") { session.step(-1) }
                    bundle.decode(bundle.encode("the little princess"))
                    session.fork().close()
                }
            }
        }
    }
}
