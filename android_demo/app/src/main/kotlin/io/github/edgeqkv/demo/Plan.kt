package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONObject

const val WARM_UP_STEPS = 2

/** How a comparison is measured: the plan of `edgeqkv bench` (edgeqkv/bench/plan.py), with its rules and its sentences. */
data class Plan(
    /** Filled positions to decode at, ascending. */
    val depths: List<Int>,
    val threads: Int,
    val prompt: Int,
    val steps: Int,
    val rounds: Int,
    val coolDownSeconds: Double,
) {
    fun json(): JSONObject = JSONObject()
        .put("depths", JSONArray(depths))
        .put("threads", threads)
        .put("prompt", prompt)
        .put("warm_up_steps", WARM_UP_STEPS)
        .put("steps", steps)
        .put("rounds", rounds)
        .put("cool_down_s", coolDownSeconds)
        .put("filled", "prefill")
}

/** The plan as it was typed. */
data class PlanFields(
    val depths: String = "",
    val rounds: String = "9",
    val steps: String = "8",
    val prompt: String = "128",
    val threads: String = "",
    val coolDown: String = "1",
) {
    /** For models of which the smallest cache has [capacity] positions, on a phone of [cores]. */
    fun plan(capacity: Int, cores: Int): Plan {
        val steps = whole(steps, "the number of measured tokens", 8).inInt("the number of measured tokens")
        val depths = if (depths.isBlank()) defaultDepths(capacity, steps) else depths(depths)
        val plan = Plan(
            depths = depths,
            threads = whole(threads, "the number of threads", cores.toLong()).inInt("the number of threads"),
            prompt = minOf(whole(prompt, "the prompt's length", 128).inInt("the prompt's length"), depths.last()),
            steps = steps,
            rounds = whole(rounds, "the number of rounds", 9).inInt("the number of rounds"),
            coolDownSeconds = real(coolDown, "the rest between rounds", 1.0),
        )
        check(plan, capacity)
        return plan
    }

    private fun depths(text: String): List<Int> =
        text.split(',', ' ', ';').filter { it.isNotBlank() }
            .map { whole(it, "a depth", 0).inInt("a depth") }.distinct().sorted()
            .ifEmpty { throw Refused("the depths are whole numbers separated by commas, found $text") }

    private fun check(plan: Plan, capacity: Int) {
        val (first, last) = plan.depths.first() to plan.depths.last()
        val wrong = when {
            first < WARM_UP_STEPS -> "depth $first is too small: $WARM_UP_STEPS warm-up tokens come before it"
            last.toLong() + plan.steps > capacity ->
                "depth $last and ${plan.steps} measured steps do not fit a cache of $capacity positions; lower them"
            plan.rounds < 1 || plan.steps < 1 || plan.prompt < 1 -> "rounds, steps and prompt must be at least 1"
            plan.threads !in 1..256 -> "threads are between 1 and 256, found ${plan.threads}"
            plan.coolDownSeconds !in 0.0..LONGEST_COOL_DOWN ->
                "the rest between rounds is between 0 and ${fixed(LONGEST_COOL_DOWN, 0)} seconds"
            else -> return
        }
        throw Refused(wrong)
    }

    private companion object {
        const val LONGEST_COOL_DOWN = 3600.0

        /** A quarter, a half and all of a cache, as far as [steps] measured tokens leave room. */
        fun defaultDepths(capacity: Int, steps: Int): List<Int> =
            listOf(1, 2, 4).map { maxOf(WARM_UP_STEPS, (capacity.toLong() * it / 4 - steps).toInt()) }.distinct().sorted()
    }
}
