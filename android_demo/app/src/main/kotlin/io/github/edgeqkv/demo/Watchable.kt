package io.github.edgeqkv.demo

import java.util.concurrent.CopyOnWriteArrayList

/** State that outlives the screens that show it. Any thread changes it; watchers are called on that thread, and look again. */
abstract class Watchable {
    private val watchers = CopyOnWriteArrayList<() -> Unit>()

    fun watch(watcher: () -> Unit) {
        watchers.add(watcher)
    }

    fun unwatch(watcher: () -> Unit) {
        watchers.remove(watcher)
    }

    protected fun changed() {
        watchers.forEach { it() }
    }
}
