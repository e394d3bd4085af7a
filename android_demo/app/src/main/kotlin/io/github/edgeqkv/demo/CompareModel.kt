package io.github.edgeqkv.demo

import java.io.File
import java.io.IOException
import java.util.concurrent.Executor

/** What the compare screen shows, and the comparison that runs, which outlives the screen. [work] runs one task at a time. */
class CompareModel(
    private val phone: Phone,
    private val processes: Processes,
    private val version: () -> String,
    /** Where the last results are kept, as JSON lines. */
    private val file: File,
    private val work: Executor,
) : Watchable() {
    data class Running(val what: String, val done: Int, val total: Int)

    data class State(
        /** Keys of the models that are to be compared. */
        val chosen: Set<String> = emptySet(),
        val running: Running? = null,
        val results: Results? = null,
        val problem: String? = null,
    )

    private val lock = Any()

    @Volatile
    var state = State()
        private set

    @Volatile
    private var comparison: Comparison? = null

    /** Brings back the last results. */
    fun start() = work.execute {
        val lines = try {
            file.readText()
        } catch (error: IOException) {
            return@execute // there are none yet
        }
        update { copy(results = Results.read(lines)) }
    }

    fun choose(key: String, chosen: Boolean) = update { copy(chosen = if (chosen) this.chosen + key else this.chosen - key) }

    fun compare(models: List<InstalledModel>, fields: PlanFields, cores: Int) {
        val comparison = try {
            if (models.size !in 2..MOST) throw Refused("choose two to $MOST models")
            val plan = fields.plan(models.minOf { it.capacity }, cores)
            Comparison(models, plan, phone, processes, version()) { what, done, total ->
                update { copy(running = Running(what, done, total)) }
            }
        } catch (error: Exception) {
            update { copy(problem = sentence(error)) }
            return
        }
        synchronized(lock) {
            if (this.comparison != null) return
            this.comparison = comparison
        }
        update { copy(running = Running("starting", 0, 0), problem = null) }
        work.execute {
            val problem = try {
                take(comparison.measure())
            } catch (error: Exception) {
                sentence(error)
            }
            this.comparison = null
            update { copy(running = null, problem = problem) }
        }
    }

    fun cancel() {
        comparison?.cancel()
    }

    /** Keeps the results, if there are any; what went wrong where there are none. */
    private fun take(outcome: Comparison.Outcome): String? {
        if (outcome.records.isEmpty()) {
            return outcome.failures.firstOrNull()?.let { "${it.getString("bundle")}: ${it.getString("message")}" }
        }
        update { copy(results = Results(outcome.lines)) }
        file.parentFile!!.mkdirs()
        val unfinished = File(file.path + ".unfinished")
        unfinished.writeText(outcome.lines)
        return if (unfinished.renameTo(file)) null else "the results cannot be kept"
    }

    private fun update(change: State.() -> State) {
        synchronized(lock) { state = state.change() }
        changed()
    }

    companion object {
        /** As many as there are measured processes (AndroidManifest.xml). */
        const val MOST = 4
    }
}
