package io.github.edgeqkv

import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertSame
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource
import kotlin.concurrent.thread

class GenerateTest {
    @ParameterizedTest
    @MethodSource("ofPython")
    fun `the logits, ids and texts of Python`(known: JSONObject) {
        TestData.open(known.getString("bundle"), known.getString("kernel")).use { bundle ->
            bundle.newSession().use { session ->
                val prompt = bundle.encode(known.getString("text"))
                assertArrayEquals(known.getJSONArray("prompt").longs(), prompt)
                session.prefill(prompt)
                val logits = known.getJSONArray("logits")
                assertEquals(List(logits.length()) { logits.getFloat(it).toRawBits() }, session.logits().bits())
                for ((name, options) in OPTIONS) {
                    val wanted = known.getJSONObject(name)
                    val tokens = mutableListOf<Token>()
                    session.reset()
                    session.generate(prompt, options) { tokens.add(it) }
                    assertArrayEquals(
                        wanted.getJSONArray("ids").longs(),
                        tokens.map { it.id }.filter { it != Token.NONE }.toLongArray(),
                    )
                    assertEquals(wanted.getString("text"), tokens.joinToString("") { it.text })
                }
            }
        }
    }

    @Test
    fun `a text comes in whole characters`() {
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session ->
                var spelled = 0
                for (seed in 1L..20L) {
                    val tokens = mutableListOf<Token>()
                    session.reset()
                    // So hot that all tokens are equally likely, bytes that are no text on their own among them.
                    session.generate(longArrayOf(1), GenerateOptions { temperature = 1e6; maxTokens = 300; this.seed = seed }) {
                        tokens.add(it)
                    }
                    val ids = tokens.map { it.id }.filter { it != Token.NONE }.toLongArray()
                    assertEquals(bundle.decode(ids), tokens.joinToString("") { it.text })
                    spelled += tokens.count { it.text.isEmpty() }
                }
                check(spelled > 20) { "hardly a character had several tokens" }
            }
        }
    }

    @Test
    fun `why it stopped`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                val prompt = longArrayOf(1, 2, 3)
                fun stop(fill: GenerateOptions.Builder.() -> Unit): StopReason {
                    session.reset()
                    return session.generate(prompt, GenerateOptions { ignoreEndTokens = true; fill() }) { true }
                }
                assertEquals(StopReason.LIMIT, stop { maxTokens = 4 })
                assertEquals(StopReason.LIMIT, stop { maxTokens = 0 })
                assertArrayEquals(prompt, session.tokens())
                assertEquals(StopReason.FULL, stop {})
                assertEquals(bundle.info.capacity, session.depth)
                session.reset()
                val third = session.generated(prompt, GenerateOptions { maxTokens = 3; ignoreEndTokens = true })[2]
                assertEquals(StopReason.END_TOKEN, stop { endTokens = listOf(third) })
                session.reset()
                var count = 0
                assertEquals(StopReason.CANCELLED, session.generate(prompt, GenerateOptions.DEFAULT) { ++count < 3 })
                assertEquals(3, count)
                assertEquals(prompt.size + 2, session.depth)
            }
        }
    }

    @Test
    fun `the bundle's end tokens count unless they are to be ignored`() {
        TestData.open("ending").use { bundle ->
            val end = bundle.encode(" little").single()
            assertEquals(listOf(end), bundle.info.endTokens)
            bundle.newSession().use { session ->
                val prompt = bundle.encode("Once upon a time")
                val ended = session.generated(prompt)
                check(end !in ended && ended.size > 5)
                session.reset()
                val on = session.generated(prompt, GenerateOptions { ignoreEndTokens = true })
                assertEquals(ended.size, on.indexOf(end))
                assertArrayEquals(ended, on.copyOf(ended.size))
            }
        }
    }

    @Test
    fun `what a listener throws comes out, and the session goes on`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                val mine = IllegalStateException("mine")
                var count = 0
                val thrown = assertThrows<IllegalStateException> {
                    session.generate(longArrayOf(1, 2, 3), GenerateOptions.DEFAULT) { if (++count == 2) throw mine else true }
                }
                assertSame(mine, thrown)
                assertEquals(2, count)
                assertEquals(4, session.depth)
                session.step(5)
            }
        }
    }

    @Test
    fun `a call from inside of the listener is refused`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                session.generate(longArrayOf(1, 2, 3), GenerateOptions { maxTokens = 2 }) {
                    val busy = EdgeQKVException.Code.BUSY
                    for (call in listOf({ session.step(1) }, { session.close() }, { session.reset() }, { session.logits() })) {
                        assertRefused(busy, "the session is in use") { call() }
                    }
                    assertEquals(3, session.tokensHeld(it))
                    true
                }
            }
        }
    }

    private var handed = 0

    private fun Session.tokensHeld(token: Token): Int {
        check(token.id >= 0)
        return depth - handed++
    }

    @Test
    fun `cancel from the listener and from another thread`() {
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session ->
                val options = GenerateOptions { ignoreEndTokens = true }
                var count = 0
                val stopped = session.generate(longArrayOf(1), options) {
                    if (++count == 5) session.cancel()
                    true
                }
                assertEquals(StopReason.CANCELLED, stopped)
                assertEquals(5, count)
                session.reset()
                session.cancel() // without effect
                count = 0
                val canceller = thread(start = false) { session.cancel() }
                val other = session.generate(longArrayOf(1), options) {
                    if (++count == 10) canceller.start()
                    if (count == 11) canceller.join()
                    true
                }
                assertEquals(StopReason.CANCELLED, other)
                check(count <= 11)
                session.step(1)
            }
        }
    }

    @Test
    fun `thousands of tokens in one call take no more local references than one`() {
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session ->
                var count = 0
                repeat(4) {
                    session.reset()
                    session.generate(longArrayOf(1), GenerateOptions { ignoreEndTokens = true }) { ++count > 0 }
                }
                assertEquals(4 * bundle.info.capacity, count)
            }
        }
    }

    @Test
    fun `options are refused outside of their ranges`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                val bad = listOf<GenerateOptions.Builder.() -> Unit>(
                    { maxTokens = -1 },
                    { temperature = -0.1 },
                    { temperature = Double.NaN },
                    { topK = -1 },
                    { topP = 1.1 },
                    { topP = Double.NaN },
                    { repetitionPenalty = -1.0 },
                    { repetitionPenalty = Double.POSITIVE_INFINITY },
                )
                for (fill in bad) {
                    assertRefused(EdgeQKVException.Code.BAD_INPUT, "found|must") { session.generated(longArrayOf(1), GenerateOptions(fill)) }
                }
                assertEquals(0, session.depth)
                assertNull(session.logits())
            }
        }
    }

    companion object {
        @JvmStatic
        fun ofPython(): List<JSONObject> = JSONArray(TestData.json("generated.json")).objects()

        /** SAMPLING of prepare.py. */
        val OPTIONS = mapOf(
            "greedy" to GenerateOptions { maxTokens = 60 },
            "sampled" to GenerateOptions {
                maxTokens = 60
                temperature = 1.5
                topK = 50
                topP = 0.9
                repetitionPenalty = 1.3
                seed = -5
            },
        )
    }
}
