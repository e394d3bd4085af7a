package io.github.edgeqkv

import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

class EdgeQKVTest {
    @TempDir
    lateinit var folder: File

    @Test
    fun `what a bundle is`() {
        TestData.open("q-mqa", "fused").use { bundle ->
            val info = bundle.info
            val manifest = JSONObject(File(TestData.folder, "q-mqa/edgeqkv.json").readText())
            val json = JSONObject(info.json)
            assertEquals(listOf("Q-MQA", "onnx", "fused", "int8", "fp32"), info.run { listOf(variant, runtime, kernel, weights, cacheDtype) })
            assertEquals(manifest.getInt("capacity"), info.capacity)
            assertEquals(manifest.getJSONObject("model").getJSONObject("config").getInt("token_count"), info.tokenCount)
            assertEquals(json.getInt("vocab_size"), info.vocabSize)
            assertEquals(json.getInt("prefill_chunk"), info.prefillChunk)
            assertEquals(262144, info.cacheBytes)
            assertEquals(null, info.tokenizerMissing)
            assertEquals(JSONObject.NULL, json.get("chat_template"))
            check(TestData.onnxRuntime.name.endsWith(info.runtimeVersion)) { info.runtimeVersion }
            check(info.checkSeconds >= 0)
            check("Q-MQA" in info.toString())
        }
        TestData.open("q-mqa", "stock", unchecked = true).use { assertEquals("stock", it.info.kernel) }
    }

    @Test
    fun `memory of the process`() {
        val memory = EdgeQKV.memory()
        // At least Java's heap, which is resident from the start. They are not read at one instant, so that they may cross.
        for (bytes in memory.run { listOf(peakRss, rss, pss, privateRss) }) check(bytes in (256L shl 20)..(4096L shl 20)) { "$memory" }
    }

    @Test
    fun `save, restore and fork go on bit for bit`() {
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session ->
                session.prefill(bundle.encode("Once upon a time"))
                val file = File(folder, "session")
                session.save(file)
                session.fork().use { fork ->
                    bundle.newSession().use { restored ->
                        restored.restore(file)
                        assertEquals(session.logits().bits(), restored.logits().bits())
                        assertEquals(session.logits().bits(), fork.logits().bits())
                        for (id in listOf(5L, 6L, 7L)) {
                            listOf(session, fork, restored).forEach { it.step(id) }
                            assertEquals(session.logits().bits(), restored.logits().bits())
                            assertEquals(session.logits().bits(), fork.logits().bits())
                        }
                        fork.step(1)
                        session.step(2)
                        assertNotEquals(session.logits().bits(), fork.logits().bits())
                    }
                }
            }
        }
    }

    /** Through JNI as well: what ONNX Runtime's telemetry would have left by now. */
    @Test
    fun `the home folder stays empty`() {
        assertEquals(TestData.home.path, System.getenv("HOME"))
        check("ORT_DISABLE_TELEMETRY" !in File("/proc/self/environ").readText()) { "which the library has to set itself" }
        TestData.open("q-mqa").use { bundle -> bundle.newSession().use { it.step(1) } }
        assertEquals(emptyList<File>(), TestData.home.walk().filter { it != TestData.home }.toList())
        val links = File("/proc/self/fd").listFiles()!!.mapNotNull { runCatching { it.toPath().toRealPath() }.getOrNull()?.toString() }
        check(links.none { "socket" in it }) { "$links" }
    }
}
