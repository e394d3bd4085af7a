package io.github.edgeqkv.demo

import android.app.Activity
import android.os.Bundle
import android.view.View
import java.util.concurrent.atomic.AtomicBoolean

/** One of the activity's three: shows the state of [watched] as often as the screen can draw, while it is started. */
abstract class Screen(val view: View, private vararg val watched: Watchable) {
    private val posted = AtomicBoolean()
    private var started = false

    private val watcher: () -> Unit = {
        if (posted.compareAndSet(false, true)) view.post(::draw)
    }

    fun start() {
        started = true
        watched.forEach { it.watch(watcher) }
        show()
    }

    open fun stop() {
        started = false
        watched.forEach { it.unwatch(watcher) }
    }

    /** What only this screen knows, over a rotation. */
    open fun save(state: Bundle) = Unit

    open fun restore(state: Bundle) = Unit

    /** Puts the state on the screen. */
    protected abstract fun show()

    private fun draw() {
        posted.set(false)
        if (started) show()
    }
}

fun View.showIf(shown: Boolean) {
    visibility = if (shown) View.VISIBLE else View.GONE
}

/** A view that the layout has. */
fun <T : View> View.part(id: Int): T = findViewById<T>(id)!!

fun <T : View> Activity.part(id: Int): T = findViewById<T>(id)!!
