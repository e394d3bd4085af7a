package io.github.edgeqkv

/**
 * The functions of src/main/cpp/jni.cc. Texts are UTF-8 bytes, since JNI's own strings are of a modified kind. Handles are
 * numbers that are never used twice; one that was closed is refused with [EdgeQKVException].
 */
internal object Native {
    private val missing: String? =
        try {
            System.loadLibrary("edgeqkv_jni")
            null
        } catch (error: UnsatisfiedLinkError) {
            error.message ?: error.toString()
        }

    /** Comes before the first native call. */
    fun load() {
        if (missing != null) {
            throw EdgeQKVException(EdgeQKVException.Code.MISSING, "libedgeqkv_jni.so cannot be loaded: $missing")
        }
    }

    @JvmStatic
    external fun version(): ByteArray

    /** peakRss, rss, pss, privateRss. */
    @JvmStatic
    external fun memory(): LongArray

    @JvmStatic
    external fun open(
        folder: ByteArray,
        runtime: ByteArray?,
        kernel: ByteArray?,
        threads: Int,
        unchecked: Boolean,
        onnxRuntime: ByteArray?,
        execuTorch: ByteArray?,
    ): Long

    @JvmStatic
    external fun closeBundle(bundle: Long)

    /** variant, runtime, runtimeVersion, kernel, weights, cacheDtype, tokenizerMissing, json. */
    @JvmStatic
    external fun bundleTexts(bundle: Long): Array<ByteArray?>

    /** capacity, vocabSize, tokenCount, prefillChunk, cacheBytes, nanoseconds of the check, end tokens. */
    @JvmStatic
    external fun bundleNumbers(bundle: Long): LongArray

    @JvmStatic
    external fun encode(bundle: Long, text: ByteArray, addSpecial: Boolean): LongArray

    @JvmStatic
    external fun decode(bundle: Long, ids: LongArray): ByteArray

    @JvmStatic
    external fun newSession(bundle: Long): Long

    @JvmStatic
    external fun closeSession(session: Long)

    @JvmStatic
    external fun depth(session: Long): Int

    @JvmStatic
    external fun tokens(session: Long): LongArray

    @JvmStatic
    external fun logits(session: Long, into: FloatArray): Boolean

    @JvmStatic
    external fun prefill(session: Long, ids: LongArray)

    @JvmStatic
    external fun step(session: Long, id: Long)

    @JvmStatic
    external fun feed(session: Long, ids: LongArray)

    @JvmStatic
    external fun rewind(session: Long, depth: Int)

    @JvmStatic
    external fun cancel(session: Long)

    /** One of EDGEQKV_STOP_*. */
    @JvmStatic
    external fun generate(
        session: Long,
        ids: LongArray,
        limit: Int,
        temperature: Double,
        topK: Int,
        topP: Double,
        repetitionPenalty: Double,
        seed: Long,
        endTokens: LongArray,
        ignoreEndTokens: Boolean,
        listener: TokenListener,
    ): Int

    @JvmStatic
    external fun save(session: Long, path: ByteArray)

    @JvmStatic
    external fun restore(session: Long, path: ByteArray)

    @JvmStatic
    external fun fork(session: Long): Long

    @JvmStatic
    external fun serve(descriptor: Int)

    /** Called by jni.cc. */
    @JvmStatic
    fun onToken(listener: TokenListener, id: Long, text: ByteArray): Boolean =
        listener.onToken(Token(id, text.decodeToString()))

    /** Called by jni.cc: the exception for one of EDGEQKV_*, which begin at 1. */
    @JvmStatic
    fun failure(code: Int, sentence: ByteArray): EdgeQKVException =
        EdgeQKVException(EdgeQKVException.Code.entries[code - 1], sentence.decodeToString())
}
