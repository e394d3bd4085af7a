package io.github.edgeqkv

import io.github.edgeqkv.EdgeQKVException.Code.BAD_INPUT
import io.github.edgeqkv.EdgeQKVException.Code.BUSY
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import java.util.concurrent.Callable
import java.util.concurrent.CountDownLatch
import java.util.concurrent.CyclicBarrier
import java.util.concurrent.Executors

class ThreadsTest {
    /** Runs on threads of their own and gives what each returns. */
    private fun <T> together(vararg work: () -> T): List<T> {
        val pool = Executors.newFixedThreadPool(work.size)
        try {
            return pool.invokeAll(work.map { Callable(it) }).map { it.get() }
        } finally {
            pool.shutdown()
        }
    }

    @Test
    fun `two sessions at once give what each gives alone`() {
        TestData.open("q-mqa").use { bundle ->
            val prompts = listOf("Once upon a time", "The little dog was").map { bundle.encode(it) }
            val options = GenerateOptions { maxTokens = 150; temperature = 0.8; seed = 3; ignoreEndTokens = true }
            val alone = prompts.map { prompt -> bundle.newSession().use { it.generated(prompt, options) } }
            repeat(3) {
                val start = CyclicBarrier(2)
                val both = prompts.map { prompt ->
                    {
                        bundle.newSession().use { session ->
                            start.await()
                            session.generated(prompt, options)
                        }
                    }
                }
                together(both[0], both[1]).forEachIndexed { place, ids -> assertArrayEquals(alone[place], ids) }
            }
        }
    }

    @Test
    fun `a session that another thread uses is refused, and not closed`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                val inside = CountDownLatch(1)
                val tried = CountDownLatch(1)
                val (stopped, _) = together(
                    {
                        session.generate(longArrayOf(1, 2, 3), GenerateOptions { maxTokens = 3; ignoreEndTokens = true }) {
                            inside.countDown()
                            tried.await()
                            true
                        }
                    },
                    {
                        inside.await()
                        try {
                            for (call in listOf({ session.step(1) }, { session.close() }, { session.tokens() }, { session.fork() })) {
                                assertRefused(BUSY, "the session is in use") { call() }
                            }
                            check(session.depth >= 3)
                        } finally {
                            tried.countDown()
                        }
                        StopReason.LIMIT
                    },
                )
                assertEquals(StopReason.LIMIT, stopped)
                session.step(1)
            }
        }
    }

    /** Every call comes back with a result, or as busy or closed. */
    @Test
    fun `closing while others call`() {
        TestData.open("small").use { bundle ->
            repeat(100) {
                val session = bundle.newSession()
                val start = CyclicBarrier(3)
                val caller = {
                    start.await()
                    var refused: EdgeQKVException.Code? = null
                    while (refused != BAD_INPUT) {
                        refused = try {
                            session.step(1)
                            if (session.depth > 50) session.reset()
                            session.cancel()
                            null
                        } catch (error: EdgeQKVException) {
                            check(error.code == BUSY || error.code == BAD_INPUT || error.code == EdgeQKVException.Code.CANCELLED) { "$error" }
                            error.code
                        }
                        Thread.sleep(0, 100_000) // or the closer hardly finds a gap
                    }
                }
                val closer = {
                    start.await()
                    while (true) {
                        try {
                            session.close()
                            break
                        } catch (error: EdgeQKVException) {
                            check(error.code == BUSY) { "$error" }
                            Thread.yield()
                        }
                    }
                }
                together(caller, caller, closer)
                assertRefused(BAD_INPUT, "the session is closed") { session.step(1) }
            }
        }
    }

    @Test
    fun `a bundle that is closed while others use it`() {
        repeat(20) {
            val bundle = TestData.open("q-mqa")
            val start = CyclicBarrier(3)
            val caller = {
                start.await()
                var closed = false
                while (!closed) {
                    try {
                        bundle.decode(bundle.encode("Once upon a time"))
                        bundle.newSession().use { it.step(1) }
                    } catch (error: EdgeQKVException) {
                        assertEquals(BAD_INPUT, error.code, error.message)
                        closed = true
                    }
                }
            }
            together(
                caller,
                caller,
                {
                    start.await()
                    Thread.sleep(5)
                    bundle.close()
                },
            )
        }
    }
}
