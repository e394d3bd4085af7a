package io.github.edgeqkv

import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

/** Against the `tokenizers` package, on chosen and on random texts and ids. */
class TokenizerTest {
    @ParameterizedTest
    @ValueSource(strings = ["qkv", "q-kv", "q-mqa"])
    fun `the ids and texts of Python`(model: String) {
        val known = JSONObject(TestData.json("tokenizer.json")).getJSONArray(model).objects()
        check(known.size > 1000)
        TestData.open(model).use { bundle ->
            for (case in known) {
                val text = case.opt("text") as String?
                val ids = case.getJSONArray(if (text == null) "decode" else "ids").longs()
                if (text != null) {
                    assertArrayEquals(ids, bundle.encode(text)) { text }
                    assertArrayEquals(case.getJSONArray("plain").longs(), bundle.encode(text, addSpecial = false)) { text }
                }
                assertEquals(case.getString("decoded"), bundle.decode(ids)) { "$case" }
            }
        }
    }

    @Test
    fun `an unpaired surrogate is a question mark`() {
        TestData.open("q-mqa").use { bundle ->
            assertArrayEquals(bundle.encode("a?b"), bundle.encode("a\ud83db"))
            assertArrayEquals(bundle.encode("a?"), bundle.encode("a\ud83d"))
        }
    }

    @Test
    fun `what is no id of the tokenizer`() {
        TestData.open("q-mqa").use { bundle ->
            assertRefused(EdgeQKVException.Code.BAD_INPUT, "token id -1 is out of range") { bundle.decode(longArrayOf(-1)) }
            assertEquals("", bundle.decode(longArrayOf()))
            assertEquals(0, bundle.encode("").size)
        }
    }

    @Test
    fun `a bundle without a tokenizer`() {
        TestData.open("small").use { bundle ->
            val why = bundle.info.tokenizerMissing!!
            assertRefused(EdgeQKVException.Code.MISSING, Regex.escape(why)) { bundle.encode("a") }
            assertRefused(EdgeQKVException.Code.MISSING, Regex.escape(why)) { bundle.decode(longArrayOf(1)) }
        }
    }
}
