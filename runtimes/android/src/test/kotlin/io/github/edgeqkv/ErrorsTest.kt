package io.github.edgeqkv

import io.github.edgeqkv.EdgeQKVException.Code.BAD_INPUT
import io.github.edgeqkv.EdgeQKVException.Code.CACHE_FULL
import io.github.edgeqkv.EdgeQKVException.Code.MISSING
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

class ErrorsTest {
    @TempDir
    lateinit var folder: File

    private fun open(bundle: File, fill: OpenOptions.Builder.() -> Unit = {}) = EdgeQKV.open(
        bundle,
        OpenOptions {
            onnxRuntimeLibrary = TestData.onnxRuntime
            fill()
        },
    )

    private fun copy(): File = File(folder, "Bündel 👍").also { File(TestData.folder, "q-mqa").copyRecursively(it, overwrite = true) }

    @Test
    fun `a folder that is no bundle`() {
        assertRefused(BAD_INPUT, "absent 👍") { open(File(folder, "absent 👍")) }
        assertRefused(BAD_INPUT, "edgeqkv.json") { open(folder) }
        assertRefused(BAD_INPUT, "does not exist") { open(File("")) }
        assertRefused(BAD_INPUT, "U\\+0000") { open(File(TestData.folder.path + "/small\u0000/x")) }
    }

    @Test
    fun `a bundle in a folder with any name`() {
        open(copy()).close()
    }

    @Test
    fun `a damaged bundle`() {
        val bundle = copy()
        for (name in listOf("edgeqkv.json", "tokenizer.json", "onnx/model.data", "onnx/model.fused.onnx")) {
            val file = File(bundle, name)
            val whole = file.readBytes()
            file.writeBytes(whole.copyOf().also { it[it.size / 2] = (it[it.size / 2].toInt() xor 1).toByte() })
            assertRefused(BAD_INPUT, Regex.escape(name)) { open(bundle) }
            file.writeBytes(whole.copyOf(whole.size / 2))
            assertRefused(BAD_INPUT, Regex.escape(name)) { open(bundle) }
            check(file.delete())
            assertRefused(BAD_INPUT, Regex.escape(name)) { open(bundle) }
            file.writeBytes(whole)
        }
        open(bundle).close()
    }

    @Test
    fun `what cannot be had here`() {
        val bundle = File(TestData.folder, "q-mqa")
        assertRefused(BAD_INPUT, "executorch") { open(bundle) { runtime = "executorch" } }
        assertRefused(BAD_INPUT, "psychic") { open(bundle) { kernel = "psychic" } }
        assertRefused(BAD_INPUT, "threads") { open(bundle) { threads = -1 } }
        assertRefused(BAD_INPUT, "threads") { open(bundle) { threads = 257 } }
        assertRefused(MISSING, "absent.so") { open(bundle) { onnxRuntimeLibrary = File("/absent.so") } }
    }

    @Test
    fun `what is closed is refused`() {
        val bundle = open(File(TestData.folder, "q-mqa"))
        val session = bundle.newSession()
        session.step(1)
        bundle.close()
        bundle.close()
        for (call in listOf({ bundle.newSession() }, { bundle.encode("a") }, { bundle.decode(longArrayOf(1)) })) {
            assertRefused(BAD_INPUT, "the bundle is closed") { call() }
        }
        assertEquals("Q-MQA", bundle.info.variant)
        session.step(2) // keeps alive what it needs
        session.fork().use { assertArrayEquals(longArrayOf(1, 2), it.tokens()) }
        session.close()
        session.close()
        session.cancel()
        val calls = listOf(
            { session.step(1) },
            { session.prefill(longArrayOf(1)) },
            { session.feed(longArrayOf(1)) },
            { session.rewind(0) },
            { session.reset() },
            { session.depth },
            { session.tokens() },
            { session.logits() },
            { session.generate(longArrayOf(1), GenerateOptions.DEFAULT) { true } },
            { session.save(File(folder, "a")) },
            { session.restore(File(folder, "a")) },
            { session.fork() },
        )
        for (call in calls) assertRefused(BAD_INPUT, "the session is closed") { call() }
    }

    @Test
    fun `numbers that are no handles`() {
        for (handle in listOf(0L, -1L, Long.MAX_VALUE, 0x7f0000001000L)) {
            assertRefused(BAD_INPUT, "closed") { Native.step(handle, 1) }
            assertRefused(BAD_INPUT, "closed") { Native.encode(handle, ByteArray(0), false) }
            Native.closeSession(handle)
            Native.closeBundle(handle)
        }
    }

    @Test
    fun `wrong ids and a full cache change nothing`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                session.prefill(longArrayOf(1, 2, 3))
                val logits = session.logits()
                for (id in listOf(-1L, bundle.info.tokenCount.toLong(), Long.MAX_VALUE, Long.MIN_VALUE)) {
                    assertRefused(BAD_INPUT, "token id $id") { session.step(id) }
                }
                assertRefused(BAD_INPUT, "no tokens|at least one") { session.prefill(longArrayOf()) }
                assertRefused(CACHE_FULL, "${bundle.info.capacity}") { session.prefill(LongArray(bundle.info.capacity) { 1 }) }
                assertRefused(BAD_INPUT, "4") { session.rewind(4) }
                assertArrayEquals(longArrayOf(1, 2, 3), session.tokens())
                assertEquals(logits.bits(), session.logits().bits())
            }
        }
    }

    @Test
    fun `an array for logits of another length`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                session.step(1)
                val n = bundle.info.vocabSize
                for (size in listOf(0, n - 1, n + 1)) {
                    assertRefused(BAD_INPUT, "there are $n logits, and the array holds $size") { session.copyLogits(FloatArray(size)) }
                }
                val mine = FloatArray(n)
                check(session.copyLogits(mine))
                assertEquals(session.logits().bits(), mine.bits())
                session.reset()
                check(!session.copyLogits(mine))
            }
        }
    }

    @Test
    fun `a file that cannot be written`() {
        TestData.open("small").use { bundle ->
            bundle.newSession().use { session ->
                session.step(1)
                val logits = session.logits()
                assertRefused(BAD_INPUT, "absent") { session.save(File(folder, "absent/file")) }
                assertRefused(BAD_INPUT, "U\\+0000") { session.save(File(folder.path + "/a\u0000b")) }
                val file = File(folder, "Sitzung 👍")
                session.save(file)
                session.reset()
                session.restore(file)
                assertEquals(logits.bits(), session.logits().bits())
            }
        }
    }

    @Test
    fun `a saved session of another bundle`() {
        val file = File(folder, "session")
        TestData.open("small").use { it.newSession().use { session -> session.step(1); session.save(file) } }
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session ->
                session.step(7)
                assertRefused(BAD_INPUT, "another model") { session.restore(file) }
                assertArrayEquals(longArrayOf(7), session.tokens())
            }
        }
    }

    @Test
    fun `an error of many characters is cut between two`() {
        val name = "ü".repeat(120) + "👍".repeat(30)
        assertRefused(BAD_INPUT, Regex.escape(name.take(20))) { open(File(folder, "$name/$name/$name/$name/$name")) }
    }

    @Test
    fun `every code has a sentence for people`() {
        assertEquals(6, EdgeQKVException.Code.entries.size)
        for (code in 1..6) assertNotNull(Native.failure(code, "a".toByteArray()).message)
    }
}
