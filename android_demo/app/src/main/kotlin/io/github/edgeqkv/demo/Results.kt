package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** Decoding at one depth. Times in ms; [low] and [high] hold the middle half of the samples. */
class Decoding(val depth: Int, val seconds: List<Double>, val p50: Double, val p90: Double, val tokensPerSecond: Double) {
    private val ranked = seconds.sorted()
    val low: Double get() = 1e3 * ranked[ranked.size / 4]
    val high: Double get() = 1e3 * ranked[ranked.size - 1 - ranked.size / 4]
}

/** What a record says of one model. Sizes in bytes. */
class Measured(record: JSONObject) {
    private val subject = record.getJSONObject("subject")
    private val use = record.getJSONObject("memory")
    private val end = use.getJSONObject("phases").optJSONObject("end")
    private val split = use.optJSONObject("split")
    private val timings = record.getJSONObject("timings")

    val variant: String = subject.getString("variant")
    val name = "$variant, ${subject.getString("weights")} / ${subject.getString("cache")}, ${subject.getString("kernel")}"
    val isBaseline = !subject.isNull("baseline")
    val weights = split?.getLong("weights")
    val cache = split?.getLong("cache")
    val rest = split?.getLong("rest")
    val peak = split?.let { it.getLong("weights") + it.getLong("cache") + it.getLong("rest") }
    val pss = end?.let { if (it.isNull("pss")) null else it.getLong("pss") }
    val cacheBytes = use.getLong("cache_bytes")
    val loadMs = 1e3 * doubles(timings.getJSONArray("load_s")).min()
    val firstTokenMs = 1e3 * timings.getJSONObject("first_token").getDouble("p50_s")
    val prompt = timings.getJSONObject("first_token").getInt("tokens")
    val decode: List<Decoding> = objects(timings.getJSONArray("decode")).map {
        Decoding(
            it.getInt("depth"),
            doubles(it.getJSONArray("seconds")),
            1e3 * it.getDouble("p50_s"),
            1e3 * it.getDouble("p90_s"),
            it.getDouble("tokens_per_s"),
        )
    }
    val roundsDone = record.getInt("rounds_done")
    val rounds = record.getJSONObject("plan").getInt("rounds")
    val throttled = record.opt("throttled") == true
    val hidden = objects(record.getJSONArray("vitals")).drop(1).any {
        it.opt("screen_on") == false || it.opt("locked") == true || it.optString("in_front") == ANOTHER_APP
    }

    /** What a model and its baseline have in common. */
    val geometry: String = subject.getJSONObject("model").let { model ->
        listOf("n_layer", "d_model", "n_positions", "vocab_size").joinToString { model.get(it).toString() } + subject.getInt("capacity")
    }
}

/** The records of one comparison, in words, numbers and plots. */
class Results(val lines: String) {
    private val all = lines.lines().filter { it.isNotBlank() }.map(::JSONObject)
    val measured: List<Measured> = all.filter { it.getString("kind") == "measurement" }.map(::Measured)
    val failures: List<String> =
        all.filter { it.getString("kind") == "failure" }.map { "${it.optString("bundle")}: ${it.getString("message")}" }

    /** What a reader has to know, then what the models need beside their baseline. */
    val sentences: List<String>
        get() = notes() + failures + measured.filter { !it.isBaseline }.mapNotNull { one ->
            measured.find { it.isBaseline && it.geometry == one.geometry }?.let { verdict(one, it) }
        }

    private fun notes(): List<String> = buildList {
        if (measured.any { it.throttled }) add("The phone throttled during this run: let it cool, and measure again.")
        measured.find { it.roundsDone < it.rounds }?.let { add("Cancelled after ${it.roundsDone} of ${it.rounds} rounds.") }
        if (measured.any { it.hidden }) add("The app was not in front all the time, or the screen was off: Android gives such an app fewer cores.")
    }

    /** At the deepest depth that both have. */
    private fun verdict(one: Measured, base: Measured): String {
        val common = one.decode.map { it.depth }.intersect(base.decode.map { it.depth }.toSet()).maxOrNull()
        val ours = one.decode.find { it.depth == common }
        val theirs = base.decode.find { it.depth == common }
        val where = if (common == null) "" else "At ${count(common)} positions, "
        val cache = "${amount(base.cacheBytes - one.cacheBytes)} cache"
        val need = if (one.peak != null && base.peak != null) {
            "needs ${amount(base.peak - one.peak)} memory at its peak ($cache)"
        } else {
            "keeps $cache"
        }
        val ratio = if (ours != null && theirs != null) speedRatio(theirs.seconds, ours.seconds, one.roundsDone) else null
        val speed = when {
            ratio == null -> "its speed was not measured often enough to compare"
            !ratio.differs -> "no difference in decoding speed could be shown (${interval(ratio.value, ratio.low, ratio.high)})"
            ratio.value > 1 -> "it decodes ${interval(ratio.value, ratio.low, ratio.high)} times faster"
            else -> "it decodes ${interval(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)} times slower"
        }
        return "$where${one.name} $need than ${base.name}; $speed."
    }

    private fun amount(saved: Long) = "${mib(kotlin.math.abs(saved))} MiB ${if (saved >= 0) "less" else "more"}"

    private fun interval(value: Double, low: Double, high: Double) = "${fixed(value, 2)}, ${fixed(low, 2)} to ${fixed(high, 2)}"

    /** Numbers side by side: a heading and a value for each model. */
    val table: List<List<String>>
        get() {
            fun row(heading: String, value: (Measured) -> String) = listOf(heading) + measured.map(value)
            val depths = measured.flatMap { one -> one.decode.map { it.depth } }.distinct().sorted()
            return listOf(
                row("") { it.name },
                row("peak RSS, MiB") { mib(it.peak) },
                row("of it weights") { mib(it.weights) },
                row("of it cache") { mib(it.cache) },
                row("of it the rest") { mib(it.rest) },
                row("PSS at the end, MiB") { mib(it.pss) },
                row("full cache, MiB") { mib(it.cacheBytes, 2) },
                row("load, ms") { fixed(it.loadMs, 0) },
                row("first token of ${measured.firstOrNull()?.prompt ?: 0}, ms") { fixed(it.firstTokenMs, 1) },
            ) + depths.flatMap { depth ->
                fun at(one: Measured, value: (Decoding) -> String) = one.decode.find { it.depth == depth }?.let(value) ?: NOT_MEASURED
                listOf(
                    row("tokens/s at ${count(depth)}") { one -> at(one) { rate(it.tokensPerSecond) } },
                    row("ms a token at ${count(depth)}, p50 / p90") { one -> at(one) { "${fixed(it.p50, 2)} / ${fixed(it.p90, 2)}" } },
                )
            }
        }

    companion object {
        /** null where [lines] are none of ours. */
        fun read(lines: String): Results? = try {
            Results(lines).takeIf { it.measured.isNotEmpty() || it.failures.isNotEmpty() }
        } catch (error: JSONException) {
            null
        }
    }
}

fun objects(array: JSONArray): List<JSONObject> = List(array.length()) { array.getJSONObject(it) }
