package io.github.edgeqkv

import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.assertThrows
import java.io.File

/** What tests/runtimes/android/prepare.py wrote, and this machine's ONNX Runtime. */
object TestData {
    val folder = File(System.getProperty("edgeqkv.data"))
    val home = File(System.getProperty("edgeqkv.home"))
    val onnxRuntime = File(System.getProperty("edgeqkv.onnxruntime"))

    @JvmStatic
    fun options(): OpenOptions = OpenOptions { threads = 1; onnxRuntimeLibrary = onnxRuntime }

    fun open(name: String, kernel: String? = null, unchecked: Boolean = false): Bundle =
        EdgeQKV.open(
            File(folder, name),
            OpenOptions {
                this.kernel = kernel
                this.unchecked = unchecked
                threads = 1
                onnxRuntimeLibrary = onnxRuntime
            },
        )

    fun json(name: String): String = File(folder, name).readText()
}

fun JSONArray.objects(): List<JSONObject> = (0 until length()).map { getJSONObject(it) }

fun JSONArray.longs(): LongArray = LongArray(length()) { getLong(it) }

fun Session.generated(ids: LongArray, options: GenerateOptions = GenerateOptions.DEFAULT): LongArray {
    val handed = mutableListOf<Long>()
    generate(ids, options) { token -> handed.add(token.id) }
    return handed.filter { it != Token.NONE }.toLongArray()
}

/** Bit for bit: NaN equals itself, and 0 is not -0. */
fun FloatArray?.bits(): List<Int>? = this?.map { it.toRawBits() }

fun assertRefused(code: EdgeQKVException.Code, sentence: String, call: () -> Unit) {
    val error = assertThrows<EdgeQKVException> { call() }
    assertEquals(code, error.code, error.message)
    check(Regex(sentence).containsMatchIn(error.message)) { "not the sentence: ${error.message}" }
}
