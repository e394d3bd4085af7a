package io.github.edgeqkv.demo

import io.github.edgeqkv.Bundle
import io.github.edgeqkv.EdgeQKVException
import io.github.edgeqkv.GenerateOptions
import io.github.edgeqkv.Session
import io.github.edgeqkv.StopReason
import io.github.edgeqkv.Token
import org.json.JSONObject
import java.io.File
import java.util.concurrent.Executor

/**
 * One text, written by a model. It outlives the screens, so that rotating or leaving the app stops nothing; [hidden] and
 * [freeMemory] put it away for the time when Android ends the process, and [shown] brings it back.
 *
 * [work] runs one task at a time, and all that touches the session runs there. The other functions return at once.
 */
class WriteModel(
    private val open: (File) -> Bundle,
    private val kept: KeptText,
    private val find: (key: String) -> InstalledModel?,
    private val work: Executor,
    private val clock: () -> Long = System::nanoTime,
    private val newSeed: () -> Long = { java.util.Random().nextLong() },
) : Watchable() {
    enum class Phase {
        /** No model is open. */
        EMPTY,
        OPENING,
        READY,

        /** The prompt is run. */
        READING,
        WRITING,

        /** The cache has no position left: [startOverWithLast] or [newText]. */
        FULL,

        /** Put away to free memory. */
        AWAY,
    }

    data class State(
        val model: InstalledModel? = null,
        val phase: Phase = Phase.EMPTY,
        val text: String = "",
        val depth: Int = 0,
        val capacity: Int = 0,
        /** Of the full cache. */
        val cacheBytes: Long = 0,
        /** Since the first token of the last generation. */
        val tokensPerSecond: Double? = null,
        val chatTemplate: Boolean = false,
        val problem: String? = null,
        /** A prompt that was refused, to be corrected. */
        val refusedPrompt: String? = null,
    ) {
        val busy: Boolean get() = phase == Phase.OPENING || phase == Phase.READING || phase == Phase.WRITING

        /** Of the filled positions. */
        val filledBytes: Long get() = if (capacity == 0) 0 else cacheBytes * depth / capacity
    }

    private val lock = Any()
    private var current = State()
    private val text = StringBuilder()

    // Of [work] alone.
    private val ids = ArrayList<Long>() // the whole text; the session may not have run the last of them yet
    private var bundle: Bundle? = null

    @Volatile
    private var session: Session? = null

    @Volatile
    private var stopping = false

    @Volatile
    private var hidden = false

    /** Whether [start] is done. */
    @Volatile
    var started = false
        private set

    val state: State get() = synchronized(lock) { current.copy(text = text.toString()) }

    /** Opens [model] for a new text, or for the one that was put away with it. */
    fun choose(model: InstalledModel) {
        if (state.model?.key == model.key && state.phase != Phase.EMPTY) return
        stop()
        work.execute {
            if (current.model != null) kept.load()?.takeIf { it.model != model.key }?.let { kept.clear() }
            close()
            openNow(model)
        }
    }

    /** The model that was open when the process ended, if its text was put away. */
    fun start() = work.execute {
        if (current.phase == Phase.EMPTY) kept.load()?.let { find(it.model) }?.let(::openNow)
        started = true
        changed()
    }

    /** A prompt that was refused, once. */
    fun takeRefusedPrompt(): String? = state.refusedPrompt?.also { update { copy(refusedPrompt = null) } }

    /** Appends [prompt] to the text and lets the model go on. */
    fun write(prompt: String, settings: WriteSettings) {
        stopping = false
        work.execute { attempt { writeNow(prompt, settings.options(newSeed)) } }
    }

    /** Ends what is being read or written, in mid-token. */
    fun stop() {
        stopping = true
        session?.cancel()
    }

    /** Forgets all but the last half of what the cache holds, which is read again. */
    fun startOverWithLast() {
        stopping = false
        work.execute {
            attempt {
                val (session, bundle) = opened()
                val last = ids.takeLast(maxOf(1, bundle.info.capacity / 2))
                show(Phase.READING)
                session.feed(last.toLongArray())
                ids.replaceBy(last)
                replaceText(bundle.decode(last.toLongArray()))
                show(Phase.READY)
            }
        }
    }

    fun newText() {
        stop()
        work.execute {
            attempt {
                opened().first.reset()
                ids.clear()
                replaceText("")
                kept.clear()
                update { copy(phase = Phase.READY, depth = 0, tokensPerSecond = null, problem = null) }
            }
        }
    }

    /**
     * The user has left the app. What is being written goes on, and is noted from time to time, since Android may end the
     * process at any moment; at its end it is saved.
     */
    fun hidden() {
        hidden = true
        work.execute { save() }
    }

    /** Android is short of memory while the user looks on: what is being written stops and is saved, and a sentence says why. */
    fun lowMemory() {
        stop()
        work.execute {
            if (session != null && save()) {
                update { copy(problem = "This phone is short of memory. The text is saved; close other apps, then go on.") }
            }
        }
    }

    /** Android is short of memory: stops, saves, and lets go of the model. */
    fun freeMemory() {
        stop()
        work.execute {
            if (session != null && save()) {
                close()
                update { copy(phase = Phase.AWAY) }
            }
        }
    }

    /** The user is back. */
    fun shown() {
        hidden = false
        work.execute {
            if (current.phase == Phase.AWAY) current.model?.let(::openNow)
        }
    }

    /** The model of [key] was deleted. */
    fun forget(key: String) = work.execute {
        if (kept.load()?.model == key) kept.clear()
        if (current.model?.key == key) {
            close()
            ids.clear()
            replaceText("")
            update { State() }
        }
    }

    // -- on the worker -------------------------------------------------------------------------------------------------

    private fun openNow(model: InstalledModel) {
        ids.clear()
        update { State(model, Phase.OPENING) }
        replaceText("")
        attempt {
            val bundle = open(model.folder).also { this.bundle = it }
            val session = bundle.newSession().also { this.session = it }
            val info = bundle.info
            val template = !JSONObject(info.json).isNull("chat_template")
            update { copy(capacity = info.capacity, cacheBytes = info.cacheBytes, chatTemplate = template) }
            kept.load()?.takeIf { it.model == model.key }?.let { takeUp(it, session) }
            // A refusal of the tokenizer's is the sentence to show before anything is typed.
            update { copy(phase = Phase.READY, depth = session.depth, problem = info.tokenizerMissing) }
        }
        if (current.phase == Phase.OPENING) {
            val problem = current.problem
            close()
            update { copy(phase = Phase.EMPTY, problem = problem) }
        }
    }

    private fun takeUp(found: KeptText.Kept, session: Session) {
        ids.replaceBy(found.ids)
        replaceText(found.text)
        try {
            session.restore(found.session)
            val held = session.tokens().asList()
            if (found.ids.take(held.size) != held) session.reset()
        } catch (error: EdgeQKVException) {
            session.reset() // a damaged file: the text is run again with the next write
        }
    }

    private fun writeNow(prompt: String, options: GenerateOptions) {
        val (session, bundle) = opened()
        val idsBefore = ids.size
        val textBefore = text.length
        if (ids.isEmpty() && prompt.isEmpty()) throw Refused("write the beginning of a text first")
        try {
            if (prompt.isNotEmpty()) {
                ids += bundle.encode(prompt, addSpecial = ids.isEmpty()).asList()
                synchronized(lock) { text.append(prompt) }
            }
            show(Phase.READING)
            // What the session has not run: the last token of a generation, a prompt that was cancelled.
            var pending = ids.drop(session.depth).toLongArray()
            if (pending.isEmpty()) { // all is held, and there may be no logits: the last token is run again
                session.rewind(ids.size - 1)
                pending = longArrayOf(ids.last())
            }
            val reason = session.generate(pending, options, Written(session)::take)
            update { copy(phase = if (reason == StopReason.FULL) Phase.FULL else Phase.READY, depth = session.depth) }
            if (reason == StopReason.FULL) update { copy(problem = full(session, bundle)) }
        } catch (error: Exception) {
            // Nothing was written yet: as before, with the prompt to be corrected.
            if (current.phase != Phase.WRITING) {
                ids.subList(idsBefore, ids.size).clear()
                synchronized(lock) { text.setLength(textBefore) }
                if (!cancelled(error)) update { copy(refusedPrompt = prompt.ifEmpty { null }) }
            }
            throw error
        }
    }

    /** Takes the tokens of one generation. */
    private inner class Written(private val session: Session) {
        private var count = 0
        private var began = 0L

        fun take(token: Token): Boolean {
            if (token.id != Token.NONE) ids += token.id
            val now = clock()
            if (count == 0) began = now
            val speed = if (count > 0 && now > began) count * 1e9 / (now - began) else null
            count++
            synchronized(lock) { text.append(token.text) }
            if (hidden && count % TOKENS_A_NOTE == 0) note()
            update { copy(phase = Phase.WRITING, depth = session.depth, tokensPerSecond = speed ?: tokensPerSecond) }
            return !stopping
        }
    }

    private fun full(session: Session, bundle: Bundle): String {
        val capacity = bundle.info.capacity
        if (session.depth == capacity) {
            return "The cache is full: all ${count(capacity)} positions hold the text. Go on with its last part, or begin a new one."
        }
        val otherwise = if (ids.isEmpty()) "" else ", go on with the last part of the text, or begin a new one"
        return "That is too long: ${count(capacity - session.depth)} of ${count(capacity)} positions are free. Shorten it$otherwise."
    }

    /** Shows what goes wrong; a generation that was cancelled is nothing wrong. */
    private fun attempt(what: () -> Unit) {
        try {
            update { copy(problem = null, refusedPrompt = null) }
            what()
        } catch (error: Exception) {
            val session = session
            val full = error is EdgeQKVException && error.code == EdgeQKVException.Code.CACHE_FULL && session != null
            val after = when {
                full && ids.isNotEmpty() -> Phase.FULL
                session == null -> current.phase
                current.phase == Phase.OPENING -> Phase.OPENING
                else -> Phase.READY
            }
            val problem = when {
                cancelled(error) -> null
                full -> full(session, bundle!!)
                else -> sentence(error)
            }
            update { copy(phase = after, problem = problem, depth = session?.depth ?: 0) }
        }
    }

    private fun cancelled(error: Exception) = error is EdgeQKVException && error.code == EdgeQKVException.Code.CANCELLED

    private fun opened(): Pair<Session, Bundle> {
        val session = session ?: throw Refused("choose a model first")
        return session to bundle!!
    }

    /** False where it cannot be saved, which is shown. */
    private fun save(): Boolean {
        val session = session ?: return false
        val model = current.model ?: return false
        return try {
            if (ids.isEmpty()) kept.clear() else kept.save(model.key, text.toString(), ids, session)
            true
        } catch (error: Exception) {
            update { copy(problem = sentence(error)) }
            false
        }
    }

    private fun note() {
        try {
            current.model?.let { kept.note(it.key, text.toString(), ids) }
        } catch (error: Exception) {
            // The save at the end will say so.
        }
    }

    private fun close() {
        session?.close()
        bundle?.close()
        session = null
        bundle = null
    }

    private fun show(phase: Phase) = update { copy(phase = phase, depth = session?.depth ?: 0) }

    private fun replaceText(new: String) {
        synchronized(lock) { text.replace(0, text.length, new) }
        changed()
    }

    private fun update(change: State.() -> State) {
        synchronized(lock) { current = current.change() }
        changed()
    }

    private companion object {
        const val TOKENS_A_NOTE = 16
    }
}

private fun ArrayList<Long>.replaceBy(ids: List<Long>) {
    clear()
    addAll(ids)
}
