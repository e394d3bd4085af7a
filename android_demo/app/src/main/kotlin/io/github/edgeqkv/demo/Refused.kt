package io.github.edgeqkv.demo

import io.github.edgeqkv.EdgeQKVException
import java.io.IOException

/** Why something that the user asked for was not done, as one sentence. */
class Refused(override val message: String, cause: Throwable? = null) : Exception(message, cause)

/** What to show of an error. The library's errors and ours are sentences already. */
fun sentence(error: Throwable): String = when (error) {
    is Refused -> error.message
    is EdgeQKVException -> error.message
    is IOException -> "a file cannot be read or written: ${error.message ?: error.javaClass.simpleName}"
    is OutOfMemoryError -> "there is not enough memory for this"
    else -> error.message ?: error.javaClass.simpleName
}
