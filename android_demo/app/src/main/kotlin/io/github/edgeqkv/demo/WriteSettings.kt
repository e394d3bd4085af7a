package io.github.edgeqkv.demo

import io.github.edgeqkv.GenerateOptions

/** The options of the write screen as they were typed. What is out of range is refused by the library. */
data class WriteSettings(
    val temperature: String = "0",
    val topK: String = "0",
    val topP: String = "1",
    val penalty: String = "1",
    val seed: String = "",
    val tokens: String = "",
) {
    /** [newSeed] gives one where none was typed. */
    fun options(newSeed: () -> Long): GenerateOptions {
        val (temperature, topP, penalty) = listOf(
            real(temperature, "the temperature", 0.0),
            real(topP, "top-p", 1.0),
            real(penalty, "the repetition penalty", 1.0),
        )
        val topK = whole(topK, "top-k", 0).inInt("top-k")
        val tokens = whole(tokens, "the number of tokens", Int.MAX_VALUE.toLong()).inInt("the number of tokens")
        val seed = if (seed.isBlank()) newSeed() else whole(seed, "the seed", 0)
        return GenerateOptions {
            this.temperature = temperature
            this.topK = topK
            this.topP = topP
            repetitionPenalty = penalty
            this.seed = seed
            maxTokens = tokens
        }
    }
}

/** A number that was typed, with a decimal point or comma. */
fun real(text: String, what: String, otherwise: Double): Double {
    if (text.isBlank()) return otherwise
    return text.trim().replace(',', '.').toDoubleOrNull()?.takeIf { it.isFinite() } ?: throw Refused("$what is no number: $text")
}

fun whole(text: String, what: String, otherwise: Long): Long {
    if (text.isBlank()) return otherwise
    return text.trim().toLongOrNull() ?: throw Refused("$what is no whole number: $text")
}

fun Long.inInt(what: String): Int =
    if (this in 0..Int.MAX_VALUE) toInt() else throw Refused("$what is between 0 and ${Int.MAX_VALUE}, found $this")
