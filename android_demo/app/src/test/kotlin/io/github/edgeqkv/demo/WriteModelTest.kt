package io.github.edgeqkv.demo

import io.github.edgeqkv.Bundle
import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File
import java.util.concurrent.CountDownLatch
import io.github.edgeqkv.demo.WriteModel.Phase

class WriteModelTest {
    @TempDir
    lateinit var root: File

    private val work = Worker()
    private val greedy = WriteSettings(tokens = "60")
    private val generated = TestData.generated("q-mqa")
    private val prompt = generated.getString("text")
    private val told = generated.getJSONObject("greedy").getString("text")

    private fun write(open: (File) -> Bundle = TestData::open) = WriteModel(
        open,
        KeptText(File(root, "text")),
        { key -> TestData.model(key.substringAfter('/')).takeIf { it.folder.exists() } },
        work,
        newSeed = { 7 },
    )

    private fun opened(name: String = "q-mqa") = write().also {
        it.choose(TestData.model(name))
        work.settle()
    }

    private fun WriteModel.done(act: WriteModel.() -> Unit): WriteModel.State {
        act()
        work.settle()
        return state
    }

    /** A copy of a bundle whose manifest says something else. */
    private fun changed(name: String, change: (JSONObject) -> Unit): InstalledModel {
        val folder = File(root, name).also { File(TestData.folder, name).copyRecursively(it) }
        val manifest = File(folder, MANIFEST)
        manifest.writeText(JSONObject(manifest.readText()).also(change).toString())
        return InstalledModel.read(folder, builtIn = false)
    }

    @Test
    fun `the text streams, as Python has it`() {
        val write = opened()
        val seen = mutableListOf<WriteModel.State>()
        write.watch { seen += write.state }
        val state = write.done { write(prompt, greedy) }
        assertEquals(prompt + told, state.text)
        assertEquals(Phase.READY to null, state.phase to state.problem)
        val tokens = generated.getJSONArray("prompt").length() + 60
        assertEquals(tokens - 1, state.depth, "the last token is not fed")
        assertEquals(512, state.capacity)
        assertEquals(state.cacheBytes * state.depth / 512, state.filledBytes)
        assertTrue(state.tokensPerSecond!! > 0)
        val phases = seen.map { it.phase }
        assertEquals(listOf(Phase.READING, Phase.WRITING, Phase.READY), phases.dropWhile { it == Phase.READY }.distinct())
        val lengths = seen.map { it.text.length }.distinct()
        assertTrue(lengths.size > 40 && lengths == lengths.sorted(), "$lengths")
        val depths = seen.filter { it.phase == Phase.WRITING }.map { it.depth }.distinct()
        assertTrue(depths.size > 40, "$depths")
    }

    @Test
    fun `it goes on where it stopped, as if it had not`() {
        val whole = opened().done { write(prompt, greedy) }.text
        val write = opened()
        write.done { write(prompt, greedy.copy(tokens = "20")) }
        assertEquals(whole, write.done { write("", greedy.copy(tokens = "40")) }.text)
        assertEquals("write the beginning of a text first", opened().done { write("", greedy) }.problem)
    }

    @Test
    fun `stop ends it in mid-text, and it can go on`() {
        val whole = opened().done { write(prompt, greedy) }.text
        val write = opened()
        val late = CountDownLatch(1)
        write.watch {
            if (late.count > 0 && write.state.text.length > prompt.length + 30) {
                late.countDown()
                write.stop()
            }
        }
        val stopped = write.done { write(prompt, greedy.copy(tokens = "")) }
        assertEquals(0, late.count)
        assertEquals(Phase.READY to null, stopped.phase to stopped.problem)
        assertTrue(whole.startsWith(stopped.text) && stopped.text.length < prompt.length + 60, stopped.text)
        write.stop() // nothing runs
        val more = write.done { write("", greedy.copy(tokens = "20")) }.text
        assertTrue(more.length > stopped.text.length + 20, more)
        assertTrue(whole.startsWith(more) || more.startsWith(whole), more)
    }

    @Test
    fun `a full cache is a sentence with choices`() {
        val write = opened()
        val full = write.done { write(prompt, greedy.copy(tokens = "")) }
        assertEquals(Phase.FULL, full.phase)
        assertTrue("all 512 positions" in full.problem!!, full.problem)
        assertEquals(512, full.depth)
        // One more token does not fit either: the library's sentence, and the same choices.
        val again = write.done { write("", greedy) }
        assertEquals(Phase.FULL, again.phase)
        assertEquals(full.text, again.text)
        assertTrue("512" in again.problem!!, again.problem)
        val last = write.done { startOverWithLast() }
        assertEquals(Phase.READY to 256, last.phase to last.depth)
        assertNull(last.problem)
        assertTrue(full.text.endsWith(last.text) && last.text.length > 256, last.text)
        val more = write.done { write("", greedy.copy(tokens = "20")) }
        assertTrue(more.text.startsWith(last.text) && more.text.length > last.text.length)
        assertEquals(Triple("", 0, Phase.READY), write.done { newText() }.let { Triple(it.text, it.depth, it.phase) })
        assertEquals(prompt + told, write.done { write(prompt, greedy) }.text)
    }

    @Test
    fun `a prompt that does not fit comes back to be shortened`() {
        val write = opened()
        write.done { write(prompt, greedy) }
        val before = write.state
        val long = "word ".repeat(600)
        val state = write.done { write(long, greedy) }
        assertEquals(before.text, state.text)
        assertEquals(Phase.FULL, state.phase)
        val free = count(512 - before.depth)
        assertEquals(
            "That is too long: $free of 512 positions are free. Shorten it, go on with the last part of the text, or begin a new one.",
            state.problem,
        )
        assertEquals(long, write.takeRefusedPrompt())
        assertNull(write.takeRefusedPrompt())
        assertTrue(write.done { write("", greedy.copy(tokens = "5")) }.text.startsWith(before.text))
    }

    @Test
    fun `a prompt that no cache could hold leaves an empty text to be begun`() {
        val write = opened()
        val long = "word ".repeat(600)
        val state = write.done { write(long, greedy) }
        assertEquals(Triple(Phase.READY, "", 0), Triple(state.phase, state.text, state.depth), "there is no last part to go on with")
        assertEquals("That is too long: 512 of 512 positions are free. Shorten it.", state.problem)
        assertEquals(long, write.takeRefusedPrompt())
        assertEquals(prompt + told, write.done { write(prompt, greedy) }.text)
    }

    @Test
    fun `options are taken as typed, and refused in sentences`() {
        val sampled = generated.getJSONObject("sampled").getString("text")
        val write = opened()
        val settings = WriteSettings("1,5", "50", " 0.9", "1.3", "-5", "60")
        assertEquals(prompt + sampled, write.done { write(prompt, settings) }.text)
        val before = write.state.text
        for ((wrong, sentence) in listOf(
            settings.copy(temperature = "hot") to "the temperature is no number: hot",
            settings.copy(temperature = "NaN") to "the temperature is no number",
            settings.copy(seed = "1.5") to "the seed is no whole number",
            settings.copy(tokens = "99999999999") to "the number of tokens is between 0 and",
            settings.copy(topP = "2") to "top", // the library's
            settings.copy(penalty = "-1") to "penalty",
        )) {
            val state = write.done { write("x", wrong) }
            assertTrue(sentence in state.problem.orEmpty(), "${state.problem}")
            assertEquals(before to Phase.READY, state.text to state.phase)
        }
        assertNull(write.done { newText() }.problem)
    }

    @Test
    fun `the process may end in the background`() {
        val whole = opened().done { write(prompt, greedy) }.text
        val before = opened().done {
            write(prompt, greedy.copy(tokens = "20"))
            hidden()
        }
        // Another process: nothing but the files is left.
        val write = write()
        assertFalse(write.started)
        val back = write.done { start() }
        assertTrue(write.started)
        assertEquals(before.text to before.depth, back.text to back.depth)
        assertEquals("q-mqa" to Phase.READY, back.model?.name to back.phase)
        assertEquals(whole, write.done { write("", greedy.copy(tokens = "40")) }.text)
    }

    @Test
    fun `hiding the app does not disturb what is written`() {
        val write = opened()
        write.watch { if (write.state.phase == Phase.WRITING) write.hidden() }
        assertEquals(prompt + told, write.done { write(prompt, greedy) }.text)
        work.settle()
        assertEquals(prompt + told, write().done { start() }.text)
    }

    @Test
    fun `the process may end while it writes in the background`() {
        val whole = opened().done { write(prompt, greedy) }.text
        val write = opened()
        var noted: KeptText.Kept? = null
        write.watch {
            if (write.state.phase == Phase.WRITING) write.hidden()
            // What another process would find, were this one ended here.
            if (noted == null && write.state.phase == Phase.WRITING) noted = KeptText(File(root, "text")).load()
        }
        write.done { write(prompt, greedy) }
        work.settle()
        val partly = noted!!
        assertTrue(whole.startsWith(partly.text) && partly.text.length in prompt.length + 10 until whole.length, partly.text)
        val found = KeptText(File(root, "text")).load()!!
        assertEquals(whole, found.text, "saved at its end")
        KeptText(File(root, "text")).note(partly.model, partly.text, partly.ids)
        found.session.delete()
        val later = write()
        assertEquals(partly.text to 0, later.done { start() }.let { it.text to it.depth })
        assertTrue(whole.startsWith(later.done { write("", greedy.copy(tokens = "20")) }.text.take(whole.length)))
        assertTrue(later.state.text.length > partly.text.length + 20)
    }

    @Test
    fun `low memory puts it away in mid-text, and it comes back`() {
        val whole = opened().done { write(prompt, greedy) }.text
        var bundles = 0
        val write = write { bundles++; TestData.open(it) }
        write.choose(TestData.model("q-mqa"))
        val once = java.util.concurrent.atomic.AtomicBoolean()
        write.watch { if (write.state.text.length > prompt.length + 20 && once.compareAndSet(false, true)) write.freeMemory() }
        val away = write.done { write(prompt, greedy) }
        work.settle()
        assertEquals(Phase.AWAY, write.state.phase)
        assertTrue(whole.startsWith(write.state.text) && write.state.text.length > prompt.length + 20, write.state.text)
        assertEquals(1, bundles)
        val back = write.done { shown() }
        assertEquals(Phase.READY to away.text, back.phase to back.text)
        assertEquals(2, bundles)
        assertTrue(write.done { write("", greedy.copy(tokens = "10")) }.text.startsWith(whole.take(back.text.length + 10)))
        write.done { shown() }
        assertEquals(2, bundles, "it is open already")
    }

    @Test
    fun `low memory in front stops and saves, and says so`() {
        val whole = opened().done { write(prompt, greedy) }.text
        val write = opened()
        val once = java.util.concurrent.atomic.AtomicBoolean()
        write.watch { if (write.state.text.length > prompt.length + 20 && once.compareAndSet(false, true)) write.lowMemory() }
        write.done { write(prompt, greedy) }
        work.settle()
        val stopped = write.state
        assertEquals(Phase.READY, stopped.phase)
        assertTrue(stopped.problem!!.contains("short of memory"), stopped.problem)
        assertTrue(whole.startsWith(stopped.text) && stopped.text.length < whole.length, stopped.text)
        assertEquals(stopped.text, write().done { start() }.text)
    }

    @Test
    fun `a session file that is damaged or gone costs time, not the text`() {
        val whole = opened().done { write(prompt, greedy) }.text
        for (harm in listOf<(File) -> Unit>({ it.writeBytes(it.readBytes().also { b -> b[b.size / 2]++ }) }, { it.delete() })) {
            opened().done {
                newText()
                write(prompt, greedy.copy(tokens = "20"))
                hidden()
            }
            File(root, "text").listFiles()!!.single { it.name.endsWith(".session") }.let(harm)
            val write = write()
            val back = write.done { start() }
            assertEquals(Phase.READY to 0, back.phase to back.depth)
            assertTrue(whole.startsWith(back.text) && back.text.length > prompt.length)
            assertEquals(whole, write.done { write("", greedy.copy(tokens = "40")) }.text)
        }
        File(root, "text/text.json").writeText("{\"model\": 1}")
        assertEquals(Phase.EMPTY, write().done { start() }.phase)
    }

    @Test
    fun `a text that cannot be put away says so and stays`() {
        val write = opened()
        write.done { write(prompt, greedy.copy(tokens = "5")) }
        File(root, "text").deleteRecursively()
        File(root, "text").writeText("a file where the folder should be")
        val state = write.done { freeMemory() }
        assertEquals(Phase.READY, state.phase)
        assertTrue(state.problem!!.isNotEmpty())
    }

    @Test
    fun `another model begins another text`() {
        val write = opened()
        write.done { write(prompt, greedy) }
        write.done {
            hidden()
            shown()
        }
        val other = write.done { choose(TestData.model("qkv")) }
        assertEquals(Triple("qkv", "", 0), Triple(other.model!!.name, other.text, other.depth))
        val qkv = TestData.generated("qkv")
        assertEquals(prompt + qkv.getJSONObject("greedy").getString("text"), write.done { write(prompt, greedy) }.text)
        assertEquals(Phase.EMPTY, write().done { start() }.phase, "the other model's text is gone")
        assertEquals(prompt + qkv.getJSONObject("greedy").getString("text"), write.done { choose(TestData.model("qkv")) }.text)
    }

    @Test
    fun `choosing while it writes stops it`() {
        val write = opened()
        val started = CountDownLatch(1)
        write.watch { if (write.state.phase == Phase.WRITING) started.countDown() }
        write.write(prompt, greedy.copy(tokens = ""))
        started.await()
        val state = write.done { choose(TestData.model("qkv")) }
        assertEquals(Triple("qkv", "", Phase.READY), Triple(state.model!!.name, state.text, state.phase))
    }

    @Test
    fun `what cannot be opened is the library's sentence`() {
        val write = write()
        val damaged = changed("q-mqa") { it.put("capacity", 400) }
        val state = write.done { choose(damaged) }
        assertEquals(Phase.EMPTY, state.phase)
        assertTrue(state.problem!!.length > 20, state.problem)
        assertEquals("choose a model first", write.done { write("x", greedy) }.problem)
        assertEquals(Phase.READY, write.done { choose(TestData.model("q-mqa")) }.phase)
    }

    @Test
    fun `without a tokenizer it says so before anything is typed`() {
        val state = opened("small").state
        assertTrue(state.problem!!.isNotEmpty())
        assertEquals(Phase.READY, state.phase)
    }

    @Test
    fun `a chat template is told of, since it is not applied`() {
        val chat = changed("q-mqa") { it.getJSONObject("text").put("chat_template", "{{ messages[0].content }}") }
        assertTrue(write().done { choose(chat) }.chatTemplate)
        assertFalse(opened().state.chatTemplate)
    }

    @Test
    fun `a screen that comes and goes misses nothing`() {
        val write = opened()
        val first = mutableListOf<String>()
        val second = mutableListOf<String>()
        val rotated = CountDownLatch(1)
        val one: () -> Unit = { first += write.state.text }
        write.watch(one)
        write.watch {
            if (rotated.count > 0 && write.state.text.length > prompt.length + 20) {
                write.unwatch(one)
                write.watch { second += write.state.text }
                rotated.countDown()
            }
        }
        write.done { write(prompt, greedy) }
        assertTrue(second.first().startsWith(first.last()))
        assertEquals(prompt + told, second.last())
    }

    @Test
    fun `a deleted model is let go of`() {
        val write = opened()
        write.done { write(prompt, greedy) }
        write.done { hidden() }
        assertEquals(WriteModel.State(), write.done { forget("imported/q-mqa") })
        assertEquals(Phase.EMPTY, write().done { start() }.phase)
    }

    @Test
    fun `kept texts hold ids of any size`() {
        val kept = KeptText(File(root, "kept"))
        assertNull(kept.load())
        TestData.open(File(TestData.folder, "q-mqa")).use { bundle ->
            bundle.newSession().use { session ->
                session.prefill(longArrayOf(1, 2, 3))
                repeat(3) { kept.save("a", "text \u0000 \uD83D\uDE00", listOf(1, Long.MAX_VALUE, 3), session) }
            }
        }
        val loaded = kept.load()!!
        assertEquals(listOf(1, Long.MAX_VALUE, 3), loaded.ids)
        assertEquals("text \u0000 \uD83D\uDE00", loaded.text)
        assertEquals(2, File(root, "kept").list()!!.size, "the description and one session")
        assertEquals(3, JSONArray(loaded.ids).length())
        kept.clear()
        assertEquals(0, File(root, "kept").list()!!.size)
    }
}
