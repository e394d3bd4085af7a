package io.github.edgeqkv

import java.io.File

/**
 * The cache of one conversation, and the tokens that fill it. [Bundle.newSession] and [fork] give it; docs/sessions.md has the
 * rules that sessions follow in every language.
 *
 * A session is for one thread at a time: a call on a session that another thread is using, or from inside its own
 * [TokenListener], is refused with [EdgeQKVException.Code.BUSY]. Only [depth] and [cancel] may be called at any time.
 * Different sessions may run at once.
 *
 * Token ids are `Long`, 0 <= id < [BundleInfo.tokenCount].
 */
public class Session internal constructor(
    private val handle: Long,
    /** The bundle's; stays readable after [close]. */
    public val info: BundleInfo,
) : AutoCloseable {
    /** How many positions are filled. From any thread, at any time. */
    public val depth: Int
        @Throws(EdgeQKVException::class)
        get() = Native.depth(handle)

    /** The ids that the session holds, [depth] of them. */
    @Throws(EdgeQKVException::class)
    public fun tokens(): LongArray = Native.tokens(handle)

    /**
     * The logits after the last token, [BundleInfo.vocabSize] of them, as a copy that is yours. null where there are none: at
     * depth 0, after a [rewind] that forgot any token, and after a call that failed part way.
     */
    @Throws(EdgeQKVException::class)
    public fun logits(): FloatArray? {
        val logits = FloatArray(info.vocabSize)
        return if (copyLogits(logits)) logits else null
    }

    /** [logits] into an array of [BundleInfo.vocabSize], which a loop may use again and again; false where there are none. */
    @Throws(EdgeQKVException::class)
    public fun copyLogits(into: FloatArray): Boolean = Native.logits(handle, into)

    /** Appends one or more ids. */
    @Throws(EdgeQKVException::class)
    public fun prefill(ids: LongArray): Unit = Native.prefill(handle, ids)

    /** Appends one id. */
    @Throws(EdgeQKVException::class)
    public fun step(id: Long): Unit = Native.step(handle, id)

    /**
     * Makes the session hold exactly [ids]: keeps the longest prefix that it already holds and prefills the rest, so that a
     * chat may hand in its whole history each time. Where nothing is left, the last token is run again.
     */
    @Throws(EdgeQKVException::class)
    public fun feed(ids: LongArray): Unit = Native.feed(handle, ids)

    /** Keeps the first [depth] tokens. */
    @Throws(EdgeQKVException::class)
    public fun rewind(depth: Int): Unit = Native.rewind(handle, depth)

    /** Starts over at depth 0. */
    @Throws(EdgeQKVException::class)
    public fun reset(): Unit = rewind(0)

    /**
     * Appends [ids], then chooses tokens, hands them to [listener] on this thread and feeds them, until one of [StopReason].
     * Without ids it goes on from the logits that the session has. An end token is neither handed out nor fed; the last token
     * is not fed. What [listener] throws stops the generation and is thrown here.
     */
    @Throws(EdgeQKVException::class)
    public fun generate(ids: LongArray, options: GenerateOptions, listener: TokenListener): StopReason {
        if (options.maxTokens < 0) {
            throw EdgeQKVException(EdgeQKVException.Code.BAD_INPUT, "maxTokens must be at least 0, found ${options.maxTokens}")
        }
        if (options.maxTokens == 0) {
            if (ids.isNotEmpty()) prefill(ids)
            return StopReason.LIMIT
        }
        val stopped = Native.generate(
            handle,
            ids,
            options.maxTokens,
            options.temperature,
            options.topK,
            options.topP,
            options.repetitionPenalty,
            options.seed,
            options.endTokens.toLongArray(),
            options.ignoreEndTokens,
            listener,
        )
        return StopReason.entries[stopped - 1]
    }

    /**
     * Stops what another thread is running on this session, in mid-token: [generate] then returns [StopReason.CANCELLED];
     * [prefill], [feed] and [step] throw [EdgeQKVException.Code.CANCELLED], and leave the depth as it was. Without effect when
     * nothing runs, and on a closed session.
     */
    public fun cancel(): Unit = Native.cancel(handle)

    /** Writes tokens, cache and logits to [file], whole or not at all. */
    @Throws(EdgeQKVException::class)
    public fun save(file: File): Unit = Native.save(handle, file.path.encodeToByteArray())

    /**
     * Takes over what [file] holds, and goes on bit for bit as the saved session would have. A file of another bundle, a
     * truncated or a changed one is refused before the session is touched.
     */
    @Throws(EdgeQKVException::class)
    public fun restore(file: File): Unit = Native.restore(handle, file.path.encodeToByteArray())

    /** A second session over the same weights, with a copy of what this one holds. */
    @Throws(EdgeQKVException::class)
    public fun fork(): Session = Session(Native.fork(handle), info)

    /**
     * Frees the cache. Closing twice is fine. While another thread is inside of a call it is refused with
     * [EdgeQKVException.Code.BUSY], and nothing is closed: [cancel] first, and wait for that call to return.
     */
    @Throws(EdgeQKVException::class)
    override fun close(): Unit = Native.closeSession(handle)
}

/** Takes the tokens of [Session.generate]. */
public fun interface TokenListener {
    /** Called with each token before it is fed; false stops the generation. */
    public fun onToken(token: Token): Boolean
}

/** A token that was generated. */
public class Token internal constructor(
    /** Its id, or [NONE]. */
    public val id: Long,
    /**
     * What it adds to the text, in whole characters: a character that several tokens spell comes with the last of them. Empty
     * where the tokenizer is not known.
     */
    public val text: String,
) {
    override fun toString(): String = "Token($id, \"$text\")"

    public companion object {
        /** The id of what comes at the end of a generation that stopped within a character: text U+FFFD, and no token. */
        public const val NONE: Long = -1
    }
}

/** Why a generation stopped. */
public enum class StopReason {
    /** [GenerateOptions.maxTokens] were handed out. */
    LIMIT,

    /** The model ended its text, or chose one of [GenerateOptions.endTokens]. */
    END_TOKEN,

    /** The cache has no position to feed the last token to. */
    FULL,

    /** The listener returned false, or [Session.cancel] was called. */
    CANCELLED,
}
