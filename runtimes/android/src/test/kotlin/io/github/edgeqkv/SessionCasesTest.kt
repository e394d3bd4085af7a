package io.github.edgeqkv

import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicContainer
import org.junit.jupiter.api.DynamicContainer.dynamicContainer
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir
import java.io.File

/** tests/session_cases.json, whose "about" explains its words: the rules that sessions follow in every language. */
class SessionCasesTest {
    @TempDir
    lateinit var folder: File

    @TestFactory
    fun cases(): List<DynamicContainer> {
        val cases = JSONObject(TestData.json("session_cases.json")).getJSONArray("cases").objects()
        return listOf("small" to "fused", "q-mqa" to "stock").map { (name, kernel) ->
            dynamicContainer(
                "$name, $kernel",
                cases.mapIndexed { place, case ->
                    dynamicTest(case.getString("name")) {
                        val files = File(folder, "$name $place").apply { mkdir() }
                        TestData.open(name, kernel).use { Run(it, files).all(case.getJSONArray("steps")) }
                    }
                },
            )
        }
    }

    private class Run(private val bundle: Bundle, private val folder: File) {
        private val sessions = mutableMapOf("main" to bundle.newSession())
        private val results = mutableMapOf<String, Any?>()
        private val names = bundle.info.run { mapOf("capacity" to capacity, "chunk" to prefillChunk, "token_count" to tokenCount) }

        fun all(steps: JSONArray) {
            try {
                steps.objects().forEachIndexed { place, step -> check(step, "step ${place + 1}: $step") }
            } finally {
                sessions.values.forEach { it.close() }
            }
        }

        private fun check(step: JSONObject, where: String) {
            val outcome = runCatching { call(step) }
            val error = outcome.exceptionOrNull()
            if (error != null && error !is EdgeQKVException) throw error
            assertEquals(step.opt("error"), (error as EdgeQKVException?)?.let { KINDS[it.code] }, "$where: ${error?.message}")
            if (error != null) return
            val result = outcome.getOrNull()
            if (step.has("as")) results[step.getString("as")] = result
            when (val wanted = step.opt("equals")) {
                null -> Unit
                is String -> assertEquals(comparable(results.getValue(wanted)), comparable(result), where)
                else -> assertEquals(ids(wanted as JSONArray), result, where)
            }
            if (step.has("length")) assertEquals(step.getInt("length"), (result as List<*>).size, where)
            if (step.has("is")) {
                val wanted = when (val given = step.get("is")) {
                    JSONObject.NULL -> null
                    is JSONArray -> ids(given)
                    else -> number(given).toInt()
                }
                assertEquals(wanted, result, where)
            }
        }

        private fun comparable(result: Any?): Any? = if (result is FloatArray) result.bits() else result

        private fun call(step: JSONObject): Any? {
            val session = sessions.getValue(step.optString("on", "main"))
            val ids = if (step.has("ids")) ids(step.getJSONArray("ids")) else emptyList()
            val file = File(folder, step.optString("file", "none"))
            return when (val what = step.getString("do")) {
                "prefill" -> session.prefill(ids.toLongArray()).let { session.logits()!! }
                "feed" -> session.feed(ids.toLongArray()).let { session.logits()!! }
                "step" -> session.step(ids.single()).let { session.logits()!! }
                "generate" -> session.generated(ids.toLongArray(), options(step)).toList()
                "depth" -> session.depth
                "tokens" -> session.tokens().toList()
                "logits" -> session.logits()
                "save" -> session.save(file)
                "restore" -> session.restore(file)
                "rewind" -> session.rewind(number(step.get("depth")).toInt())
                "reset" -> session.reset()
                "close" -> session.close()
                "open" -> sessions[step.getString("to")] = bundle.newSession()
                "fork" -> sessions[step.getString("to")] = session.fork()
                "concatenation" -> ids
                "damage" -> file.writeBytes(
                    file.readBytes().also {
                        val place = Math.floorMod(step.getInt("byte"), it.size)
                        it[place] = (it[place].toInt() xor 1).toByte()
                    },
                )
                "truncate" -> file.writeBytes(file.readBytes().dropLast(step.getInt("bytes")).toByteArray())
                else -> error("an unknown step: $what")
            }
        }

        private fun options(step: JSONObject) = GenerateOptions {
            if (step.has("limit")) maxTokens = number(step.get("limit")).toInt()
            if (step.has("end_tokens")) {
                endTokens = ids(step.getJSONArray("end_tokens"))
                ignoreEndTokens = true
            }
            val sampling = step.optJSONObject("sampling") ?: return@GenerateOptions
            temperature = sampling.optDouble("temperature", temperature)
            topK = sampling.optInt("top_k", topK)
            topP = sampling.optDouble("top_p", topP)
            repetitionPenalty = sampling.optDouble("repetition_penalty", repetitionPenalty)
            seed = sampling.optLong("seed", seed)
        }

        private fun number(value: Any): Long =
            if (value is Number) {
                value.toLong()
            } else {
                TERM.findAll(value as String).sumOf { term ->
                    val (sign, word) = term.destructured
                    (if (sign == "-") -1 else 1) * (names[word]?.toLong() ?: word.toLong())
                }
            }

        private fun ids(items: JSONArray): List<Long> = items.flatMap { item ->
            if (item !is JSONObject) return@flatMap listOf(number(item))
            if (item.has("from")) {
                val first = number(item.get("from"))
                return@flatMap List(number(item.get("count")).toInt()) { (first + it) % names.getValue("token_count") }
            }
            @Suppress("UNCHECKED_CAST")
            val known = results.getValue(item.getString("of")) as List<Long>
            if (item.has("at")) return@flatMap listOf(known[item.getInt("at")])
            if (!item.has("before")) return@flatMap known
            val before = item.getInt("before")
            if (before < 0) known.dropLast(-before) else known.take(known.indexOf(known[before]))
        }
    }

    private companion object {
        val TERM = Regex("([+-]?)(\\w+)")
        val KINDS = mapOf(
            EdgeQKVException.Code.CACHE_FULL to "full",
            EdgeQKVException.Code.BAD_INPUT to "input",
            EdgeQKVException.Code.CHECK_FAILED to "check",
            EdgeQKVException.Code.MISSING to "missing",
        )
    }
}
