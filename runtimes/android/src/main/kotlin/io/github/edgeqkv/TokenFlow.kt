// The only file that needs kotlinx-coroutines-core.
@file:JvmName("TokenFlows")

package io.github.edgeqkv

import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.channelFlow
import kotlinx.coroutines.job
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withContext
import kotlinx.coroutines.withTimeoutOrNull
import java.util.concurrent.atomic.AtomicBoolean
import kotlin.time.Duration.Companion.milliseconds

/**
 * [Session.generate] as a cold stream: each collection generates anew, on [dispatcher].
 *
 * Cancelling the collection stops the generation before its next token or piece of a prompt, and ends when it has stopped, so
 * that the session is free again. A slow collector slows the generation. [EdgeQKVException] reaches the collector.
 *
 * @param dispatcher has a thread for each collection, which computes and which waits for the collector: one that the collector
 *   itself does not need, so not [Dispatchers.Default], whose threads are as few as the cores.
 * @param onStopped called on [dispatcher] when the generation has stopped; not where it failed or its collector was cancelled.
 */
@JvmOverloads
public fun Session.tokenFlow(
    ids: LongArray,
    options: GenerateOptions = GenerateOptions.DEFAULT,
    dispatcher: CoroutineDispatcher = Dispatchers.IO,
    onStopped: (StopReason) -> Unit = {},
): Flow<Token> = channelFlow {
    val session = this@tokenFlow
    val computing = AtomicBoolean() // cancel only what is ours: a flow that was refused must not stop the one that runs
    val generation = launch(dispatcher) {
        val job = coroutineContext.job
        computing.set(true)
        val stopped = try {
            session.generate(ids, options) { token ->
                // As a child of the job, waiting for a slow collector ends when it is cancelled; trySendBlocking would wait on.
                if (!trySend(token).isSuccess) runBlocking(job) { send(token) }
                true
            }
        } finally {
            computing.set(false)
        }
        ensureActive()
        onStopped(stopped)
    }
    try {
        generation.join()
    } finally {
        // Again and again: a cancel that comes before generate has begun is without effect.
        withContext(NonCancellable) {
            while (!generation.isCompleted) {
                if (computing.get()) session.cancel()
                withTimeoutOrNull(CANCEL_AGAIN) { generation.join() }
            }
        }
    }
}

private val CANCEL_AGAIN = 10.milliseconds
