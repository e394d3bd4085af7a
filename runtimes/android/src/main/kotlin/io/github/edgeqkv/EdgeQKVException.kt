package io.github.edgeqkv

/** Why a call was refused or failed: [code] for programs, [message] as one sentence for people. */
public class EdgeQKVException internal constructor(
    public val code: Code,
    override val message: String,
) : RuntimeException(message) {
    /** The kinds of errors; docs/sessions.md has them for every language. */
    public enum class Code {
        /** The runtime failed, or its logits are not finite. */
        CHECK_FAILED,

        /** An argument or a file is wrong, or the bundle or session is closed. */
        BAD_INPUT,

        /** The device lacks something: a library, an operator, memory. */
        MISSING,

        /** More tokens than the session's capacity holds. */
        CACHE_FULL,

        /** Another thread is using the session. */
        BUSY,

        /** [Session.cancel] was called; the depth is that before the call. */
        CANCELLED,
    }
}
