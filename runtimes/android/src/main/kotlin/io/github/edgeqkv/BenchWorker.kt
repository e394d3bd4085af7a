package io.github.edgeqkv

/**
 * Lets `edgeqkv bench --device adb://SERIAL --in-app` measure this process: `runtimes/android/in-app.md` says what an app does
 * besides. No app needs it for anything else.
 *
 * ```
 * ParcelFileDescriptor.dup(connection.fileDescriptor).use { BenchWorker.serve(it.fd) } // connection: a LocalSocket
 * ```
 */
public object BenchWorker {
    /**
     * Answers the requests that come over the socket [descriptor], one JSON object a line each way, until the other side ends
     * the connection. One bundle is open at a time. Whoever has the other end makes this process read any file that it may
     * read, so serve nobody but the shell's user.
     *
     * Blocks, so not on Android's main thread. [descriptor] stays open; it remains the caller's.
     */
    @JvmStatic
    @Throws(EdgeQKVException::class)
    public fun serve(descriptor: Int) {
        Native.load()
        Native.serve(descriptor)
    }
}
