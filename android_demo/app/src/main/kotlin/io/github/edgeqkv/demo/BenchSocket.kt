package io.github.edgeqkv.demo

/** Who may measure this app from outside, and by which socket: runtimes/android/in-app.md. */
object BenchSocket {
    private val NAME = Regex("edgeqkv-bench-[0-9a-f]{32}")
    private const val ROOT = 0
    private const val SHELL = 2000

    /** How long an activity waits for its host. */
    const val PATIENCE_MS = 60_000L

    fun isName(name: String?): Boolean = name != null && NAME.matches(name)

    /** adb is the shell's user. */
    fun serves(uid: Int): Boolean = uid == ROOT || uid == SHELL
}
