package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test

class ResultsTest {
    private fun record(variant: String, cache: Long, peak: Long?, ms: List<Double>, rounds: Int = FEWEST): JSONObject {
        val split = peak?.let { JSONObject().put("weights", MIB).put("cache", cache).put("rest", it - cache - MIB) }
        val seconds = ms.map { it / 1e3 }
        return JSONObject()
            .put("kind", "measurement")
            .put("rounds_done", rounds)
            .put("plan", JSONObject().put("rounds", FEWEST))
            .put("throttled", JSONObject.NULL)
            .put("vitals", JSONArray(listOf(Vitals(screenOn = true).json(), Vitals(screenOn = true).json())))
            .put(
                "subject",
                JSONObject().put("variant", variant).put("weights", "int8").put("cache", "fp32").put("kernel", "fused").put("capacity", 512)
                    .put("baseline", if (variant == "QKV") "given" else JSONObject.NULL)
                    .put("model", JSONObject().put("n_layer", 4).put("d_model", 256).put("n_positions", 512).put("vocab_size", 2048)),
            )
            .put(
                "memory",
                JSONObject().put("cache_bytes", cache).put("split", orNull(split))
                    .put("phases", JSONObject().put("end", JSONObject().put("pss", JSONObject.NULL))),
            )
            .put(
                "timings",
                JSONObject().put("load_s", JSONArray(listOf(0.25))).put("first_token", timing(0, 16, listOf(0.1)))
                    .put("decode", JSONArray(listOf(timing(20, 1, seconds), timing(1060, 1, seconds)))),
            )
    }

    private fun results(vararg records: JSONObject) = Results(records.joinToString("") { "$it\n" })

    private val qkv = record("QKV", 8 * MIB, 30 * MIB, listOf(9.9, 9.9, 10.0, 10.0, 10.1))
    private val mqa = record("Q-MQA", MIB / 2, 20 * MIB, listOf(4.95, 4.95, 5.0, 5.0, 5.05))

    @Test
    fun `a verdict beside the baseline`() {
        assertEquals(
            listOf(
                "At 1,060 positions, Q-MQA, int8 / fp32, fused needs 10.0 MiB less memory at its peak (7.5 MiB less cache) " +
                    "than QKV, int8 / fp32, fused; it decodes 2.00, 2.00 to 2.00 times faster.",
            ),
            results(qkv, mqa).sentences,
        )
        val same = record("Q-MQA", MIB / 2, null, listOf(9.0, 9.0, 11.0, 11.0, 10.0))
        assertTrue("keeps 7.5 MiB less cache than QKV, int8 / fp32, fused; no difference" in results(qkv, same).sentences.single())
        val slower = record("Q-MQA", MIB / 2, null, listOf(19.8, 19.8, 20.0, 20.0, 20.2))
        assertTrue(results(qkv, slower).sentences.single().endsWith("it decodes 2.00, 2.00 to 2.00 times slower."))
        val once = record("Q-MQA", MIB / 2, null, listOf(20.0), rounds = 1)
        assertTrue(results(qkv, once).sentences.last().endsWith("its speed was not measured often enough to compare."))
        assertEquals("Cancelled after 1 of 5 rounds.", results(qkv, once).sentences.first())
        assertEquals(emptyList<String>(), results(mqa).sentences, "no baseline, no verdict")
    }

    @Test
    fun `what a reader has to know comes first`() {
        val hot = JSONObject(mqa.toString()).put("throttled", true)
        hot.getJSONArray("vitals").put(Vitals(screenOn = false).json())
        val behind = JSONObject(qkv.toString())
        behind.getJSONArray("vitals").put(Vitals(inFront = ANOTHER_APP).json())
        assertTrue(results(behind).sentences.single().startsWith("The app was not in front"))
        val sentences = results(qkv, hot).sentences
        assertTrue(sentences[0].startsWith("The phone throttled") && sentences[1].startsWith("The app was not in front"), "$sentences")
    }

    @Test
    fun `numbers side by side`() {
        val table = results(qkv, record("Q-MQA", MIB / 2, null, listOf(5.0))).table
        assertEquals(listOf("peak RSS, MiB", "30.0", "not measured"), table[1])
        assertEquals(listOf("full cache, MiB", "8.00", "0.50"), table.single { it[0].startsWith("full cache") })
        assertEquals(listOf("PSS at the end, MiB", "not measured", "not measured"), table.single { it[0].startsWith("PSS") })
        assertEquals(listOf("load, ms", "250", "250"), table.single { it[0].startsWith("load") })
        assertEquals(listOf("tokens/s at 1,060", "100", "200"), table.single { it[0] == "tokens/s at 1,060" })
        assertTrue(table.all { it.size == 3 })
    }

    @Test
    fun `lines of others are none of ours`() {
        assertNull(Results.read(""))
        assertNull(Results.read("no JSON"))
        assertNull(Results.read("{\"kind\": \"measurement\"}"))
        assertEquals(2, Results.read("$qkv\n\n$mqa\n")!!.measured.size)
    }

    @Test
    fun `quantiles occurred, and the rate is by the median`() {
        val one = timing(7, 4, listOf(4.0, 1.0, 3.0, 2.0))
        assertEquals(listOf(2.0, 4.0, 4.0), listOf("p50_s", "p90_s", "p99_s").map(one::getDouble))
        assertEquals(4 / 2.5, one.getDouble("tokens_per_s"))
        val hundred = timing(0, 1, List(100) { it + 1.0 })
        assertEquals(listOf(50.0, 90.0, 99.0), listOf("p50_s", "p90_s", "p99_s").map(hundred::getDouble))
    }

    private companion object {
        const val MIB = 1L shl 20
    }
}
