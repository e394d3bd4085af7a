package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONObject
import java.io.File
import java.security.MessageDigest
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone

/** One model while it is measured: what its process has said, and the record that comes of it (edgeqkv/bench/running.py). */
class MeasuredModel(val number: Int, val model: InstalledModel, private val plan: Plan) {
    private val manifest = model.manifest().also {
        if (it.optInt("format") != FORMAT) throw Refused("${model.name} comes from another version of edgeqkv; export it again")
    }
    private val manifestSha256 = sha256(File(model.folder, MANIFEST).readBytes())
    private val artifacts = manifest.getJSONArray("artifacts").let { all -> List(all.length()) { all.getJSONObject(it) } }
        .filter { it.getString("runtime") == RUNTIME }
        .ifEmpty { throw Refused("${model.name} has nothing for ONNX Runtime, which is what this app has; export it with --target onnx") }
    private var artifact = artifacts[0]

    var process: MeasuredProcess? = null
    private var loaded = JSONObject()
    private var greedy = JSONArray()
    private val filled = mutableSetOf<Int>()

    private val loads = mutableListOf<Double>()
    private val firstTokens = mutableListOf<Double>()
    private val prefills = LinkedHashMap<Pair<Int, Int>, MutableList<Double>>() // by depth and tokens
    private val steps = LinkedHashMap<Int, MutableList<Double>>() // by depth
    private val memory = LinkedHashMap<String, JSONObject>() // by phase

    val label: String get() = "${model.variant} (${cache().getString("dtype")} cache)"

    val cacheBytes: Long get() = cache().getLong("bytes")

    val weightsBytes: Long get() = artifact.getJSONObject("files").keys().asSequence().sumOf { File(model.folder, it).length() }

    private fun cache() = artifact.getJSONObject("cache")

    // -- what is measured ----------------------------------------------------------------------------------------------

    fun load(process: MeasuredProcess) {
        this.process = process
        filled.clear()
        loaded = process.ask(
            "load",
            "bundle" to model.folder.path,
            "runtime" to RUNTIME,
            "kernel" to JSONObject.NULL,
            "threads" to plan.threads,
        )
        artifact = artifacts.first { it.getString("kernel") == loaded.getString("kernel") }
        loads += loaded.getDouble("load_s")
        memory.getOrPut("start") { loaded.getJSONObject("start") }
        note("loaded")
        val room = minOf(GREEDY_TOKENS, model.capacity - GREEDY_PROMPT.length())
        greedy = process.ask("greedy", "ids" to GREEDY_PROMPT, "tokens" to room).getJSONArray("ids")
    }

    fun firstToken() {
        firstTokens += process!!.ask("first_token", "tokens" to plan.prompt).getDouble("seconds")
        note("prefilled")
    }

    fun atDepth(depth: Int) {
        val process = process!!
        if (filled.add(depth)) {
            process.ask("fill", "depth" to depth, "how" to "prefill")
            note("depth $depth")
        }
        val tokens = minOf(plan.prompt, depth)
        prefills.getOrPut(depth - tokens to tokens) { mutableListOf() } +=
            process.ask("prefill", "depth" to depth - tokens, "tokens" to tokens).getDouble("seconds")
        val seconds = process.ask("decode", "depth" to depth, "warm_up" to WARM_UP_STEPS, "steps" to plan.steps)
        steps.getOrPut(depth) { mutableListOf() } += doubles(seconds.getJSONArray("seconds"))
    }

    fun endRound() {
        memory["end"] = process!!.ask("memory")
    }

    private fun note(phase: String) {
        if (phase !in memory) memory[phase] = process!!.ask("memory")
    }

    // -- what is recorded ----------------------------------------------------------------------------------------------

    /** All but what every model of the run has in common. */
    fun record(roundsDone: Int, interleaving: String): JSONObject = JSONObject()
        .put("kind", "measurement")
        .put("schema", SCHEMA)
        .put("cell", cell())
        .put("subject", subject())
        .put("plan", plan.json())
        .put("rounds_done", roundsDone)
        .put("interleaving", interleaving)
        .put("timings", timings())
        .put("memory", memoryUse())
        .put("greedy_ids", greedy)

    /** The same for the same question; more rounds are more of the same. */
    private fun cell() =
        sha256(listOf(number, manifestSha256, plan.copy(rounds = 1, coolDownSeconds = 0.0)).toString().toByteArray()).take(16)

    private fun subject() = JSONObject()
        .put("bundle", model.name)
        .put("bundle_sha256", manifestSha256)
        .put("baseline", orNull("given".takeIf { model.variant in BASELINES }))
        .put("variant", model.variant)
        .put("model", manifest.getJSONObject("model").getJSONObject("config"))
        .put("capacity", model.capacity)
        .put("weights", artifact.getJSONObject("weights").getString("scheme"))
        .put("cache", cache().getString("dtype"))
        .put("runtime", loaded.getString("runtime"))
        .put("runtime_version", loaded.getString("runtime_version"))
        .put("kernel", loaded.getString("kernel"))
        .put("parity", orNull(parity()))

    private fun parity(): JSONObject? {
        val all = manifest.getJSONArray("parity")
        return List(all.length()) { all.getJSONObject(it) }.find {
            listOf("runtime", "kernel").all { key -> it.getString(key) == loaded.getString(key) } && it.getString("executor") == "runtime"
        }
    }

    private fun timings() = JSONObject()
        .put("load_s", JSONArray(loads))
        .put("first_token", timing(0, plan.prompt, firstTokens))
        .put("prefill", JSONArray(prefills.map { (cell, seconds) -> timing(cell.first, cell.second, seconds) }))
        .put("decode", JSONArray(steps.map { (depth, seconds) -> timing(depth, 1, seconds) }))

    private fun memoryUse(): JSONObject {
        val allocated = loaded.getLong("cache_bytes")
        return JSONObject()
            .put("phases", JSONObject(memory as Map<*, *>))
            .put("split", orNull(split(allocated)))
            .put("cache_bytes", allocated)
            .put("cache_bytes_analytic", cacheBytes)
            .put("cache_bytes_per_position", cache().getLong("bytes_per_position"))
            .put("weights_bytes", weightsBytes)
    }

    /** The highest peak in three parts, of which only the sum is measured. */
    private fun split(cacheBytes: Long): JSONObject? {
        val peak = memory.values.filter { !it.isNull("peak_rss") }.maxOfOrNull { it.getLong("peak_rss") } ?: return null
        val share = (plan.depths.last() + plan.steps).toDouble() / model.capacity
        val used = (cacheBytes * minOf(share, 1.0)).toLong()
        val resident = minOf(weightsBytes, maxOf(0, peak - used)) // a mapped file need not be in memory as a whole
        return JSONObject().put("weights", resident).put("cache", used).put("rest", maxOf(0, peak - used - resident))
    }

    private companion object {
        const val FORMAT = 4
        const val RUNTIME = "onnx"
        const val GREEDY_TOKENS = 16
        val GREEDY_PROMPT get() = JSONArray(listOf(1, 2, 3))
        val BASELINES = setOf("QKV", "MLA expanded")
    }
}

/** Samples with their quantiles, which are nearest-rank, so that each occurred; the rate is by the median. */
fun timing(depth: Int, tokens: Int, seconds: List<Double>): JSONObject {
    val ranked = seconds.sorted()
    fun quantile(percent: Int) = ranked[maxOf(0, (percent * ranked.size + 99) / 100 - 1)]
    return JSONObject()
        .put("depth", depth)
        .put("tokens", tokens)
        .put("seconds", JSONArray(seconds))
        .put("p50_s", quantile(50))
        .put("p90_s", quantile(90))
        .put("p99_s", quantile(99))
        .put("tokens_per_s", tokens / median(seconds))
}

fun median(values: List<Double>): Double {
    val ranked = values.sorted()
    val middle = ranked.size / 2
    return if (ranked.size % 2 == 1) ranked[middle] else (ranked[middle - 1] + ranked[middle]) / 2
}

fun doubles(array: JSONArray): List<Double> = List(array.length()) { array.getDouble(it) }

fun sha256(bytes: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it.toInt() and 0xff) }

/** In UTC. */
fun time(format: String, milliseconds: Long): String =
    SimpleDateFormat(format, Locale.ROOT).apply { timeZone = TimeZone.getTimeZone("UTC") }.format(Date(milliseconds))
