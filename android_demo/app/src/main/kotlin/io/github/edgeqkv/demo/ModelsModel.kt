package io.github.edgeqkv.demo

import java.util.concurrent.Executor

/** What the models screen shows, and its imports, which go on while no screen is there. [work] runs one task at a time. */
class ModelsModel(private val store: ModelStore, private val work: Executor) : Watchable() {
    data class Import(val name: String, val done: Long, val total: Long?)

    data class State(
        val models: List<InstalledModel> = emptyList(),
        /** The app's own are being put in place, which only the first start takes long for. */
        val preparing: Boolean = true,
        val import: Import? = null,
        val problem: String? = null,
    )

    @Volatile
    var state = State()
        private set

    @Volatile
    private var cancelled = false

    fun start(builtIn: () -> List<BundleSource>) = work.execute {
        val problem = attempt { builtIn().forEach { source -> source.use(store::installBuiltIn) } }
        show { copy(models = store.models(), preparing = false, problem = problem) }
    }

    /** Another import that runs is finished first. [pick] may ask other apps, which may take long. */
    fun import(pick: () -> BundleSource) {
        work.execute {
            cancelled = false
            var done = 0L
            var told = 0L
            var known: Long? = null
            val problem = attempt {
                val source = pick()
                show { copy(import = Import(source.name, 0, null), problem = null) }
                store.import(source) { bytes, total ->
                    if (cancelled) throw ImportCancelled()
                    // A zip is copied whole before what is in it can be counted.
                    if (total != known) {
                        done = 0
                        told = 0
                        known = total
                    }
                    done += bytes
                    if (done - told > (1 shl 20)) {
                        told = done
                        show { copy(import = Import(source.name, done, total)) }
                    }
                }
            }
            show { copy(models = store.models(), import = null, problem = problem) }
        }
    }

    fun cancel() {
        cancelled = true
    }

    fun delete(model: InstalledModel) = work.execute {
        val problem = attempt { store.delete(model) }
        show { copy(models = store.models(), problem = problem) }
    }

    private fun attempt(what: () -> Unit): String? = try {
        what()
        null
    } catch (error: ImportCancelled) {
        null
    } catch (error: Exception) {
        sentence(error)
    }

    private fun show(change: State.() -> State) {
        state = state.change()
        changed()
    }
}
