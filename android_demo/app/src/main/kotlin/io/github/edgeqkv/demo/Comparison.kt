package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONObject
import java.util.Random
import java.util.concurrent.CountDownLatch
import java.util.concurrent.TimeUnit

/**
 * One interleaved run as `edgeqkv bench` makes it (edgeqkv/bench/measure.py): every model in a process of its own, all of them in
 * turn, round after round, so that what slows the phone for a while slows all of them. All stay loaded where the phone has the
 * memory; else each is loaded again for each of its visits.
 */
class Comparison(
    models: List<InstalledModel>,
    private val plan: Plan,
    private val phone: Phone,
    private val processes: Processes,
    /** The version of edgeqkv's native library. */
    private val version: String,
    private val now: () -> Long = System::currentTimeMillis,
    private val progress: (what: String, done: Int, total: Int) -> Unit,
) {
    /** One record a line, and one of each failure. */
    class Outcome(val records: List<JSONObject>, val failures: List<JSONObject>) {
        val lines: String get() = (records + failures).joinToString("") { "$it\n" }
    }

    private val cells = models.mapIndexed { number, model -> MeasuredModel(number, model, plan) }
    private val stop = CountDownLatch(1)
    private val live = mutableListOf<MeasuredProcess>()
    private val kept = LinkedHashMap<MeasuredModel, JSONObject>()
    private val failures = mutableListOf<JSONObject>()
    private val run = "${time("yyyyMMdd'T'HHmmss'Z'", now())}-%06x".format(Random().nextInt(1 shl 24))
    private var done = 0

    /** Measures; whole rounds are kept when it is cancelled. On the caller's thread, for minutes. */
    fun measure(): Outcome {
        try {
            allRounds()
        } finally {
            synchronized(live) { live.toList() }.forEach { it.kill() }
        }
        return Outcome(kept.values.toList(), failures)
    }

    /** From any thread. */
    fun cancel() {
        stop.countDown()
        synchronized(live) { live.toList() }.forEach { it.kill() }
    }

    private val stopped get() = stop.count == 0L

    private fun allRounds() {
        val environment = phone.environment()
        val app = phone.app()
        val running = cells.toMutableList()
        val vitals = mutableListOf(phone.vitals())
        val resident = cells.sumOf { 2 * it.weightsBytes + it.cacheBytes + PROCESS_BYTES } < RESIDENT_SHARE * phone.availableBytes
        for (round in 1..plan.rounds) {
            val batches = if (resident) listOf(running.toList()) else running.map(::listOf)
            for (batch in batches) {
                work(batch).forEach { (cell, what, work) -> attempt(running, cell, "round $round of ${plan.rounds}, $what", work) }
                if (!resident) batch.forEach { end(it) }
            }
            if (running.isEmpty() || stopped) return
            vitals += phone.vitals()
            for (cell in running) {
                kept[cell] = cell.record(round, if (resident) "resident" else "reloaded")
                    .put("run", run)
                    .put("time", time("yyyy-MM-dd'T'HH:mm:ss'+00:00'", now()))
                    .put("device", DEVICE)
                    .put("environment", environment)
                    .put("vitals", JSONArray(vitals.map { it.json() }))
                    .put("throttled", orNull(hasThrottled(vitals)))
                    .put("program", program())
                    .put("app", app)
            }
            if (round < plan.rounds) stop.await((plan.coolDownSeconds * 1000).toLong(), TimeUnit.MILLISECONDS)
        }
        progress("done", done, done)
    }

    /** All that there is to do in one round for models that are loaded together. */
    private fun work(batch: List<MeasuredModel>): List<Triple<MeasuredModel, String, () -> Unit>> =
        batch.flatMap { cell -> listOf(Triple(cell, "loading") { load(cell) }, Triple(cell, "first token", cell::firstToken)) } +
            plan.depths.flatMap { depth -> batch.map { cell -> Triple(cell, "at depth ${count(depth)}") { cell.atDepth(depth) } } } +
            batch.map { cell -> Triple(cell, "end of the round", cell::endRound) }

    /** A model that fails leaves the run; when the run is being cancelled, that is why. */
    private fun attempt(running: MutableList<MeasuredModel>, cell: MeasuredModel, what: String, work: () -> Unit) {
        if (cell !in running || stopped) return
        progress("${cell.label}: $what", done, running.size * plan.rounds * (3 + plan.depths.size))
        done++
        try {
            work()
        } catch (error: Exception) {
            running -= cell
            end(cell)
            if (!stopped) failures += failure(cell, sentence(error))
        }
    }

    private fun load(cell: MeasuredModel) {
        if (cell.process != null) return
        val process = processes.start(cell.number)
        synchronized(live) { live += process }
        if (stopped) process.kill() // cancelled while it started
        cell.load(process)
    }

    private fun end(cell: MeasuredModel) {
        val process = cell.process ?: return
        process.kill()
        synchronized(live) { live -= process }
        cell.process = null
    }

    private fun program() = JSONObject()
        .put("name", "app")
        .put("edgeqkv", version)
        .put("git_commit", JSONObject.NULL)
        .put("packages", JSONObject())

    private fun failure(cell: MeasuredModel, message: String) = JSONObject()
        .put("kind", "failure")
        .put("schema", SCHEMA)
        .put("run", run)
        .put("time", time("yyyy-MM-dd'T'HH:mm:ss'+00:00'", now()))
        .put("device", DEVICE)
        .put("bundle", cell.model.name)
        .put("message", message)

    private companion object {
        const val PROCESS_BYTES = 64L shl 20
        const val RESIDENT_SHARE = 0.7
    }
}

/** The version of edgeqkv/bench/record.schema.json. */
const val SCHEMA = 3

/** What stands for the device's address in records that a phone makes of itself. */
const val DEVICE = "measured by itself"
