package io.github.edgeqkv

import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.async
import kotlinx.coroutines.awaitCancellation
import kotlinx.coroutines.cancelAndJoin
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import kotlin.time.Duration.Companion.milliseconds
import kotlin.time.Duration.Companion.seconds

class TokenFlowTest {
    private val long = GenerateOptions { ignoreEndTokens = true }

    private fun withSession(work: suspend CoroutineScope.(Bundle, Session) -> Unit) {
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session -> runBlocking { withTimeout(50.seconds) { work(bundle, session) } } }
        }
    }

    @Test
    fun `a flow is cold, and gives what the listener gets`() = withSession { bundle, session ->
        val prompt = bundle.encode("Once upon a time")
        val options = GenerateOptions { maxTokens = 30 }
        val wanted = mutableListOf<Token>()
        session.generate(prompt, options) { wanted.add(it) }
        var stopped: StopReason? = null
        val flow = session.tokenFlow(prompt, options) { stopped = it }
        session.reset()
        assertEquals(0, session.depth)
        repeat(2) {
            session.reset()
            assertEquals(wanted.map { it.id to it.text }, flow.toList().map { it.id to it.text })
            assertEquals(StopReason.LIMIT, stopped)
        }
    }

    @Test
    fun `a collector that has enough leaves a session that can be used`() = withSession { _, session ->
        for (wanted in 1..20) {
            session.reset()
            assertEquals(wanted, session.tokenFlow(longArrayOf(1), long).take(wanted).toList().size)
            session.step(1)
            check(session.depth < 200)
        }
    }

    @Test
    fun `a cancelled collector stops the generation`() = withSession { bundle, session ->
        for (pause in listOf(0, 1, 5, 20, 50)) {
            session.reset()
            var tokens = 0
            val job = launch(Dispatchers.Default) {
                session.tokenFlow(longArrayOf(1), long).collect {
                    tokens++
                    delay(1) // or a fast machine is done before it is cancelled
                }
            }
            delay(pause.milliseconds)
            job.cancelAndJoin()
            val depth = session.depth
            session.reset() // not busy
            check(depth < bundle.info.capacity) { "it ran on to the end" }
            check(tokens <= depth + 1)
        }
    }

    @Test
    fun `a collector that is cancelled while the generation waits for it`() = withSession { _, session ->
        val job = launch(Dispatchers.Default) { session.tokenFlow(longArrayOf(1), long).collect { awaitCancellation() } }
        var depth = -1
        while (depth < 2 || session.depth > depth) { // until the buffer is full
            depth = session.depth
            delay(100)
        }
        job.cancelAndJoin()
        session.reset()
    }

    /** Cancelled before, while and after generate begins: the prompt is not run to its end for nobody. */
    @Test
    fun `a cancelled collector stops a long prompt`() = withSession { bundle, session ->
        val prompt = LongArray(bundle.info.capacity) { 1L + it % 500 }
        for (pause in listOf(0, 0, 0, 1, 2, 3)) {
            session.reset()
            val job = launch(Dispatchers.Default) { session.tokenFlow(prompt, long).collect() }
            delay(pause.milliseconds)
            job.cancelAndJoin()
            session.reset()
        }
    }

    @Test
    fun `errors reach the collector`() = withSession { bundle, session ->
        val refused = assertThrows<EdgeQKVException> {
            runBlocking { session.tokenFlow(longArrayOf(bundle.info.tokenCount.toLong())).toList() }
        }
        assertEquals(EdgeQKVException.Code.BAD_INPUT, refused.code)
        val mine = IllegalStateException("mine")
        val thrown = assertThrows<IllegalStateException> {
            runBlocking { session.tokenFlow(longArrayOf(1), long).onEach { throw mine }.collect() }
        }
        assertEquals(mine.message, thrown.message)
        session.reset()
    }

    @Test
    fun `a slow collector loses nothing and holds the generation back`() = withSession { _, session ->
        val wanted = session.generated(longArrayOf(1), GenerateOptions { ignoreEndTokens = true; maxTokens = 200 })
        session.reset()
        var most = 0
        val ids = mutableListOf<Long>()
        session.tokenFlow(longArrayOf(1), GenerateOptions { ignoreEndTokens = true; maxTokens = 200 }).collect {
            if (ids.size < 20) delay(5)
            ids.add(it.id)
            most = maxOf(most, session.depth - ids.size)
        }
        assertArrayEquals(wanted, ids.toLongArray())
        check(most < 100) { "the generation was $most tokens ahead" }
    }

    @Test
    fun `two flows on one session are refused, on two sessions they run at once`() = withSession { bundle, session ->
        val tried = CompletableDeferred<Unit>()
        val first = async(Dispatchers.Default) { session.tokenFlow(longArrayOf(1), long).onEach { tried.await() }.toList() }
        bundle.newSession().use { other ->
            val second = async(Dispatchers.Default) { other.tokenFlow(longArrayOf(1), long).toList() }
            while (session.depth == 0) delay(1)
            repeat(100) { // and none of them stops the one that runs
                val refused = runCatching { session.tokenFlow(longArrayOf(1)).toList() }.exceptionOrNull()
                assertEquals(EdgeQKVException.Code.BUSY, (refused as EdgeQKVException).code)
            }
            tried.complete(Unit)
            assertEquals(first.await().map { it.id }, second.await().map { it.id })
        }
    }
}
