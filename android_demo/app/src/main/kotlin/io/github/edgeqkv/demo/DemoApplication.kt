package io.github.edgeqkv.demo

import android.app.Application
import android.content.ComponentCallbacks2
import io.github.edgeqkv.EdgeQKV
import java.io.File
import java.util.concurrent.Executor
import java.util.concurrent.Executors

/** Holds what outlives the screens. Nothing of it exists in the processes that are measured, which never ask for it. */
class DemoApplication : Application() {
    /** Whether the user has this app's screen before them. */
    @Volatile
    var inFront = false

    private val folder by lazy { File(filesDir, "bundles") }
    private val store by lazy { ModelStore(folder) { EdgeQKV.open(it).close() } }

    val models by lazy {
        clearPicked(cacheDir)
        ModelsModel(store, worker("models")).also { it.start { builtInBundles(assets) } }
    }

    private val lazyWrite = lazy {
        WriteModel({ EdgeQKV.open(it) }, KeptText(File(filesDir, "text")), store::find, worker("write")).also { it.start() }
    }
    val write by lazyWrite

    val compare by lazy {
        val results = File(filesDir, "results/last.jsonl")
        CompareModel(AndroidPhone(this) { inFront }, AppProcesses(this), { EdgeQKV.version }, results, worker("compare"))
            .also { it.start() }
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (!lazyWrite.isInitialized()) return
        if (inFront) {
            // Sent to an app in front up to Android 13; later versions end other apps instead.
            @Suppress("DEPRECATION")
            if (level == ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL) write.lowMemory()
        } else if (level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND) {
            write.freeMemory()
        } else if (level >= ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN) {
            write.hidden()
        }
    }

    private fun worker(name: String): Executor = Executors.newSingleThreadExecutor { Thread(it, name) }
}
