package io.github.edgeqkv

/**
 * How tokens are chosen and when a generation ends; docs/sessions.md has the exact rules. In Kotlin
 * `GenerateOptions { temperature = 0.6; topK = 40 }`, in Java `new GenerateOptions.Builder().temperature(0.6).topK(40).build()`.
 *
 * Values outside of their ranges are refused by [Session.generate].
 */
public class GenerateOptions private constructor(builder: Builder) {
    /** Tokens at most; by default until the cache is full. 0 runs the prompt and hands out nothing. */
    public val maxTokens: Int = builder.maxTokens

    /** 0, the default, takes the most likely token each time. */
    public val temperature: Double = builder.temperature

    /** Only the `topK` most likely tokens are drawn from; 0 is all. */
    public val topK: Int = builder.topK

    /** Only the most likely tokens that together reach this probability are drawn from; within (0, 1]. */
    public val topP: Double = builder.topP

    /** Above 1, tokens that the session holds become less likely; above 0. */
    public val repetitionPenalty: Double = builder.repetitionPenalty

    /** The same seed and logits give the same tokens, in every language that edgeqkv has. All 64 bits count. */
    public val seed: Long = builder.seed

    /** Ids that end the generation besides the bundle's own. */
    public val endTokens: List<Long> = builder.endTokens.toList()

    /** The bundle's end tokens are tokens like any other. */
    public val ignoreEndTokens: Boolean = builder.ignoreEndTokens

    /** Collects what [GenerateOptions] has; the properties are described there. */
    public class Builder {
        @get:JvmSynthetic
        @set:JvmSynthetic
        public var maxTokens: Int = Int.MAX_VALUE

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var temperature: Double = 0.0

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var topK: Int = 0

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var topP: Double = 1.0

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var repetitionPenalty: Double = 1.0

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var seed: Long = 0

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var endTokens: List<Long> = emptyList()

        @get:JvmSynthetic
        @set:JvmSynthetic
        public var ignoreEndTokens: Boolean = false

        public fun maxTokens(maxTokens: Int): Builder = apply { this.maxTokens = maxTokens }

        public fun temperature(temperature: Double): Builder = apply { this.temperature = temperature }

        public fun topK(topK: Int): Builder = apply { this.topK = topK }

        public fun topP(topP: Double): Builder = apply { this.topP = topP }

        public fun repetitionPenalty(penalty: Double): Builder = apply { repetitionPenalty = penalty }

        public fun seed(seed: Long): Builder = apply { this.seed = seed }

        public fun endTokens(vararg ids: Long): Builder = apply { endTokens = ids.asList() }

        public fun ignoreEndTokens(ignore: Boolean): Builder = apply { ignoreEndTokens = ignore }

        public fun build(): GenerateOptions = GenerateOptions(this)
    }

    public companion object {
        /** Greedy, until an end token or until the cache is full. */
        @JvmField
        public val DEFAULT: GenerateOptions = Builder().build()

        @JvmSynthetic
        public operator fun invoke(fill: Builder.() -> Unit): GenerateOptions = Builder().apply(fill).build()
    }
}
