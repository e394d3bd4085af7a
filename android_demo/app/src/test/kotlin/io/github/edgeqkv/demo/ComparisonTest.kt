package io.github.edgeqkv.demo

import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors

class ComparisonTest {
    @TempDir
    lateinit var root: File

    private val plan = Plan(listOf(20, 60), threads = 1, prompt = 16, steps = 3, rounds = FEWEST, coolDownSeconds = 0.0)
    private val models = listOf("qkv", "q-kv", "q-mqa").map(TestData::model)
    private val asked = mutableListOf<String>()
    private val running = mutableSetOf<MeasuredProcess>()

    /** Real processes, and what each was asked. */
    private val processes = Processes { number ->
        val process = TestData.startProcess()
        val noted = object : MeasuredProcess {
            override fun ask(what: String, vararg arguments: Pair<String, Any>): JSONObject {
                val depth = arguments.toMap()["depth"]
                asked += "$number $what" + if (depth == null) "" else " $depth"
                return process.ask(what, *arguments)
            }

            override fun kill() {
                process.kill()
                synchronized(running) { running -= this }
            }
        }
        noted.also { synchronized(running) { running += it } }
    }

    private fun comparison(
        models: List<InstalledModel> = this.models,
        plan: Plan = this.plan,
        phone: Phone = TestPhone(),
        processes: Processes = this.processes,
        progress: (String, Int, Int) -> Unit = { _, _, _ -> },
    ) = Comparison(models, plan, phone, processes, "0.2.0", { 1_770_000_000_000 }, progress)

    @Test
    fun `every model is visited before any is visited again`() {
        val shown = mutableListOf<Pair<Int, Int>>()
        val outcome = comparison { _, done, total -> shown += done to total }.measure()
        assertEquals(emptyList<JSONObject>(), outcome.failures)
        assertEquals(listOf("QKV", "Q-K=V", "Q-MQA"), outcome.records.map { it.getJSONObject("subject").getString("variant") })
        val order = asked.filter { "decode" in it || "first_token" in it }
        val round = (0..2).map { "$it first_token" } + listOf(20, 60).flatMap { depth -> (0..2).map { "$it decode $depth" } }
        assertEquals(List(FEWEST) { round }.flatten(), order)
        assertEquals((0..2).toList(), asked.filter { "load" in it }.map { it.substringBefore(' ').toInt() }, "each is loaded once")
        assertEquals(emptySet<MeasuredProcess>(), running)
        assertEquals(shown.map { it.first }, shown.map { it.first }.sorted())
        assertEquals(FEWEST * 3 * 5, shown.last().first)
        assertTrue(shown.all { it.first <= it.second })
        for (record in outcome.records) {
            assertEquals(FEWEST to "resident", record.getInt("rounds_done") to record.getString("interleaving"))
            assertEquals(FEWEST + 1, record.getJSONArray("vitals").length())
            val decode = objects(record.getJSONObject("timings").getJSONArray("decode"))
            assertEquals(listOf(20, 60), decode.map { it.getInt("depth") })
            assertEquals(listOf(3 * FEWEST, 3 * FEWEST), decode.map { it.getJSONArray("seconds").length() })
            assertEquals(1, record.getJSONObject("timings").getJSONArray("load_s").length())
            val phases = record.getJSONObject("memory").getJSONObject("phases")
            assertEquals(setOf("start", "loaded", "prefilled", "depth 20", "depth 60", "end"), phases.keys().asSequence().toSet())
        }
        // tests/android_demo/test_app.py reads them, and compares the sentences with its own.
        File(TestData.results, "resident.jsonl").writeText(outcome.lines)
        File(TestData.results, "resident.txt").writeText(Results(outcome.lines).sentences.joinToString("\n"))
    }

    @Test
    fun `without the memory for all, each is loaded for each of its visits`() {
        val outcome = comparison(phone = TestPhone(memory = 1)).measure()
        assertEquals(3 * FEWEST, asked.count { "load" in it })
        assertEquals(listOf("reloaded", "reloaded", "reloaded"), outcome.records.map { it.getString("interleaving") })
        assertEquals(FEWEST, outcome.records[0].getJSONObject("timings").getJSONArray("load_s").length())
        assertEquals(emptySet<MeasuredProcess>(), running)
        File(TestData.results, "reloaded.jsonl").writeText(outcome.lines)
    }

    @Test
    fun `the same question has the same cell, and each run its own name`() {
        val (one, two) = List(2) { comparison(models.take(2), plan.copy(rounds = 1)).measure().records }
        assertEquals(one.map { it.getString("cell") }, two.map { it.getString("cell") })
        assertEquals(2, one.map { it.getString("cell") }.distinct().size)
        assertTrue(one[0].getString("run") != two[0].getString("run"))
        assertEquals(one[0].getString("run"), one[1].getString("run"))
    }

    @Test
    fun `a cancelled run keeps its whole rounds`() {
        lateinit var comparison: Comparison
        comparison = comparison(plan = plan.copy(rounds = 1000)) { what, _, _ -> if (what.endsWith("round 2 of 1000, at depth 60")) comparison.cancel() }
        val outcome = comparison.measure()
        assertEquals(listOf(1, 1, 1), outcome.records.map { it.getInt("rounds_done") })
        assertEquals(emptyList<JSONObject>(), outcome.failures)
        assertEquals(emptySet<MeasuredProcess>(), running)
        File(TestData.results, "cancelled.jsonl").writeText(outcome.lines)
    }

    @Test
    fun `cancelling wakes one that waits for an answer, and one that rests`() {
        val waiting = CountDownLatch(1)
        val released = CountDownLatch(1)
        val stuck = Processes {
            object : MeasuredProcess {
                override fun ask(what: String, vararg arguments: Pair<String, Any>): JSONObject {
                    waiting.countDown()
                    released.await()
                    throw Refused("ended")
                }

                override fun kill() = released.countDown()
            }
        }
        val comparison = comparison(processes = stuck)
        val thread = Executors.newSingleThreadExecutor()
        val outcome = thread.submit<Comparison.Outcome> { comparison.measure() }
        waiting.await()
        comparison.cancel()
        assertEquals("", outcome.get().lines)
        val rested = CountDownLatch(1)
        val resting = comparison(plan = plan.copy(coolDownSeconds = 3600.0)) { what, _, _ -> if ("end of the round" in what) rested.countDown() }
        val later = thread.submit<Comparison.Outcome> { resting.measure() }
        rested.await()
        Thread.sleep(100)
        resting.cancel()
        assertEquals(listOf(1, 1, 1), later.get().records.map { it.getInt("rounds_done") })
        thread.shutdown()
    }

    @Test
    fun `a model whose process ends leaves the run, the others go on`() {
        val dying = Processes { number ->
            val process = processes.start(number)
            if (number != 1) {
                process
            } else {
                object : MeasuredProcess by process {
                    override fun ask(what: String, vararg arguments: Pair<String, Any>): JSONObject {
                        if (what == "prefill") process.kill()
                        return process.ask(what, *arguments)
                    }
                }
            }
        }
        val outcome = comparison(processes = dying).measure()
        assertEquals(listOf("QKV", "Q-MQA"), outcome.records.map { it.getJSONObject("subject").getString("variant") })
        assertEquals(listOf(FEWEST, FEWEST), outcome.records.map { it.getInt("rounds_done") })
        val failure = outcome.failures.single()
        assertEquals("q-kv", failure.getString("bundle"))
        assertEquals("the measured process ended during 'prefill', probably for want of memory", failure.getString("message"))
        assertEquals(listOf("q-kv: ${failure.getString("message")}"), Results(outcome.lines).failures)
        File(TestData.results, "failed.jsonl").writeText(outcome.lines)
    }

    @Test
    fun `what the worker refuses is its sentence`() {
        val broken = File(root, "q-mqa").also { File(TestData.folder, "q-mqa").copyRecursively(it) }
        val model = InstalledModel.read(broken, builtIn = false)
        val comparison = comparison(listOf(models[0], model))
        broken.walk().filter { it.name.endsWith(".onnx") }.forEach { it.writeText("no graph") }
        val outcome = comparison.measure()
        assertEquals(1, outcome.records.size)
        assertTrue(outcome.failures.single().getString("message").length > 20, outcome.failures[0].toString())
    }

    @Test
    fun `what this app cannot measure is refused before it begins`() {
        fun changed(change: (JSONObject) -> Unit): InstalledModel {
            val folder = File(root, "changed").also { it.mkdirs() }
            File(folder, MANIFEST).writeText(models[2].manifest().also(change).toString())
            return InstalledModel.read(folder, builtIn = false)
        }
        assertRefused("another version of edgeqkv") { comparison(listOf(models[0], changed { it.put("format", 3) })) }
        assertRefused("nothing for ONNX Runtime") {
            comparison(listOf(models[0], changed { objects(it.getJSONArray("artifacts")).forEach { a -> a.put("runtime", "coreml") } }))
        }
    }

    @Test
    fun `the screen's comparison ends with results that outlive the app`() {
        val work = Worker()
        val file = File(root, "results/last.jsonl")
        fun model() = CompareModel(TestPhone(), processes, { "0.2.0" }, file, work)
        val compare = model()
        compare.start()
        work.settle()
        assertEquals(CompareModel.State(), compare.state)
        val fields = PlanFields(depths = "20", rounds = "2", steps = "2", prompt = "8", threads = "1", coolDown = "0")
        compare.compare(models.take(1), fields, 4)
        assertEquals("choose two to 4 models", compare.state.problem)
        compare.compare(models, fields.copy(depths = "511"), 4)
        assertTrue("do not fit a cache of 512" in compare.state.problem!!)
        models.forEach { compare.choose(it.key, true) }
        compare.choose(models[1].key, false)
        assertEquals(setOf(models[0].key, models[2].key), compare.state.chosen)
        val seen = mutableListOf<CompareModel.Running?>()
        compare.watch { seen += compare.state.running }
        compare.compare(models.take(2), fields, 4)
        compare.compare(models, fields, 4) // one at a time: the second is not begun
        work.settle()
        assertNull(compare.state.problem)
        assertNull(compare.state.running)
        assertEquals(listOf("QKV", "Q-K=V"), compare.state.results!!.measured.map { it.variant })
        assertTrue(seen.filterNotNull().any { it.total == 2 * 2 * 4 && it.what == "Q-K=V (fp32 cache): round 2 of 2, at depth 20" }, "$seen")
        val later = model()
        later.start()
        work.settle()
        assertEquals(compare.state.results!!.lines, later.state.results!!.lines)
        file.writeText("damaged")
        val damaged = model()
        damaged.start()
        work.settle()
        assertNull(damaged.state.results)
    }

    @Test
    fun `cancelled before the first round there is nothing to show, and the next can begin`() {
        val work = Worker()
        val compare = CompareModel(TestPhone(), processes, { "0.2.0" }, File(root, "last.jsonl"), work)
        val fields = PlanFields(depths = "20", rounds = "2", steps = "2", prompt = "8", threads = "1")
        compare.watch { if (compare.state.running?.what?.contains("first token") == true) compare.cancel() }
        compare.compare(models, fields, 4)
        work.settle()
        assertEquals(CompareModel.State(), compare.state)
        assertFalse(File(root, "last.jsonl").exists())
        compare.compare(models, fields, 4)
        assertTrue(compare.state.running != null)
        work.settle()
    }

    @Test
    fun `a process that writes no answer is refused`() {
        val noise = LineProcess("not JSON\n".byteInputStream(), java.io.ByteArrayOutputStream()) {}
        assertRefused("answered 'memory' with not JSON") { noise.ask("memory") }
        assertRefused("ended during 'memory'") { noise.ask("memory") }
    }
}
