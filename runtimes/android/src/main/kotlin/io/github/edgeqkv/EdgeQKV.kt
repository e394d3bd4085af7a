package io.github.edgeqkv

import java.io.File

/**
 * Runs a bundle that `edgeqkv export` wrote, in this process.
 *
 * ```
 * EdgeQKV.open(folder).use { bundle ->
 *     bundle.newSession().use { session ->
 *         val prompt = bundle.encode("Once upon a time")
 *         val options = GenerateOptions { maxTokens = 100; temperature = 0.6 }
 *         session.generate(prompt, options) { token ->
 *             print(token.text)
 *             true // go on
 *         }
 *     }
 * }
 * ```
 *
 * A [Bundle] holds the weights and never changes. Over it, any number of [Session]s are opened; each holds one cache and the
 * tokens that fill it. With kotlinx.coroutines, [Session.tokenFlow] is the same as a cold stream.
 *
 * **Errors.** Everything that is refused or fails throws [EdgeQKVException], whose message is one sentence. A call that is
 * refused changes nothing. A closed bundle or session is refused like any other wrong input.
 *
 * **Threads.** A bundle may be used from any threads at once. A session is for one thread at a time; see [Session].
 * Calls run where they are called, and opening, prefilling and generating take long: not on Android's main thread.
 *
 * **Ownership.** Bundles and sessions hold memory that the garbage collector does not see: [AutoCloseable.close] frees it.
 * They may be closed in any order. Arrays that are handed in or out are copies.
 *
 * **Network.** The library opens no socket. ONNX Runtime's telemetry is switched off before ONNX Runtime is loaded: by
 * `ORT_DISABLE_TELEMETRY=1` in the environment of the process. An app that also uses ONNX Runtime's own Java API has to call
 * [EdgeQKV.open] first, or to set the variable itself by `android.system.Os.setenv`.
 */
public object EdgeQKV {
    /** The version of the native library: "0.2.0". */
    @get:JvmStatic
    public val version: String
        @Throws(EdgeQKVException::class)
        get() {
            Native.load()
            return Native.version().decodeToString()
        }

    /**
     * Opens the bundle in [folder] and loads its weights. Every file is compared with the digest that the bundle's manifest
     * names, so that a bundle may come from anywhere. Takes up to some seconds.
     *
     * @throws EdgeQKVException with [EdgeQKVException.Code.BAD_INPUT] where the folder is no bundle or is damaged,
     *   [EdgeQKVException.Code.MISSING] where this device lacks a library or memory.
     */
    @JvmStatic
    @JvmOverloads
    @Throws(EdgeQKVException::class)
    public fun open(folder: File, options: OpenOptions = OpenOptions.DEFAULT): Bundle {
        Native.load()
        return Bundle(
            Native.open(
                folder.path.encodeToByteArray(),
                options.runtime?.encodeToByteArray(),
                options.kernel?.encodeToByteArray(),
                options.threads,
                options.unchecked,
                options.onnxRuntimeLibrary?.path?.encodeToByteArray(),
                options.execuTorchLibrary?.path?.encodeToByteArray(),
            ),
        )
    }

    /** What this whole process holds in memory, by the system's own accounts. */
    @JvmStatic
    @Throws(EdgeQKVException::class)
    public fun memory(): MemoryInfo {
        Native.load()
        val (peak, rss, pss, own) = Native.memory()
        return MemoryInfo(peak, rss, pss, own)
    }
}

/** Memory of the whole process in bytes; -1 is unknown. */
public class MemoryInfo internal constructor(
    /** The most that was ever resident. */
    public val peakRss: Long,
    /** Resident now, shared pages included. */
    public val rss: Long,
    /** The same, shared pages divided by their users: what Android counts. */
    public val pss: Long,
    /** Pages that this process alone has. */
    public val privateRss: Long,
) {
    override fun toString(): String = "MemoryInfo(peakRss=$peakRss, rss=$rss, pss=$pss, privateRss=$privateRss)"
}
