package io.github.edgeqkv

/**
 * An opened bundle: the weights, for any number of sessions and threads. [EdgeQKV.open] gives it.
 *
 * Sessions keep alive what they need of it, so that it may be closed before them.
 */
public class Bundle internal constructor(private val handle: Long) : AutoCloseable {
    /** What the bundle is; stays readable after [close]. */
    public val info: BundleInfo = BundleInfo(Native.bundleTexts(handle), Native.bundleNumbers(handle))

    /** A new session with an empty cache of [BundleInfo.cacheBytes]; memory is taken as the cache fills. */
    @Throws(EdgeQKVException::class)
    public fun newSession(): Session = Session(Native.newSession(handle), info)

    /**
     * Token ids of [text]. Special tokens in the text are recognised as such; with [addSpecial], those that the tokenizer puts
     * around a text (a beginning-of-text token, say) are added, which a chat template does itself. Unpaired surrogates
     * become "?", as everywhere in Java.
     *
     * @throws EdgeQKVException with [EdgeQKVException.Code.MISSING] where [BundleInfo.tokenizerMissing] is not null.
     */
    @JvmOverloads
    @Throws(EdgeQKVException::class)
    public fun encode(text: String, addSpecial: Boolean = true): LongArray =
        Native.encode(handle, text.encodeToByteArray(), addSpecial)

    /** The text of token ids, special tokens left out. */
    @Throws(EdgeQKVException::class)
    public fun decode(ids: LongArray): String = Native.decode(handle, ids).decodeToString()

    /** Lets go of the weights, which are freed when the last session is closed. Closing twice is fine. */
    override fun close(): Unit = Native.closeBundle(handle)
}

/** What a bundle is, and what of it was opened. */
public class BundleInfo internal constructor(texts: Array<ByteArray?>, numbers: LongArray) {
    /** "Q-MQA", ... */
    public val variant: String = texts[0]!!.decodeToString()

    /** "onnx" or "executorch". */
    public val runtime: String = texts[1]!!.decodeToString()

    /** Version of the runtime's library in use. */
    public val runtimeVersion: String = texts[2]!!.decodeToString()

    /** "fused" or "stock". */
    public val kernel: String = texts[3]!!.decodeToString()

    /** "int8", ... */
    public val weights: String = texts[4]!!.decodeToString()

    /** "fp32", "fp16" or "int8". */
    public val cacheDtype: String = texts[5]!!.decodeToString()

    /** Why [Bundle.encode] and [Bundle.decode] are refused and generated tokens have no text; null: they work. */
    public val tokenizerMissing: String? = texts[6]?.decodeToString()

    /**
     * All of this as a JSON object, with "chat_template" (Jinja, or null) and "special_tokens" of the manifest: for
     * `org.json.JSONObject`.
     */
    public val json: String = texts[7]!!.decodeToString()

    /** Positions of a session's cache. */
    public val capacity: Int = Math.toIntExact(numbers[0])

    /** Length of the logits. */
    public val vocabSize: Int = Math.toIntExact(numbers[1])

    /** Ids that exist, 0 until this; the rest of the logits is padding. */
    public val tokenCount: Int = Math.toIntExact(numbers[2])

    /** Tokens of a prompt that are run at once. */
    public val prefillChunk: Int = Math.toIntExact(numbers[3])

    /** Bytes of one session's full cache with all scales. */
    public val cacheBytes: Long = numbers[4]

    /** What comparing the files with their digests took; about 0 where all were known from an earlier [EdgeQKV.open]. */
    public val checkSeconds: Double = numbers[5] / 1e9

    /** Ids that end a generation. */
    public val endTokens: List<Long> = numbers.drop(6)

    override fun toString(): String = "BundleInfo($json)"
}
