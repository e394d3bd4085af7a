package io.github.edgeqkv.demo

import java.io.Closeable
import java.io.InputStream

const val MANIFEST = "edgeqkv.json"

/** A file that is to be copied. [path] is as its source names it, with "/" between folders; [size] is null where unknown. */
class SourceFile(val path: String, val size: Long?, val open: () -> InputStream)

/** Where a bundle comes from: a folder of the system's picker, a zip, the app's own assets. */
interface BundleSource : Closeable {
    /** What the user calls it. */
    val name: String

    /** All files, at any depth. Called once, on a thread that may wait. */
    fun files(progress: ImportProgress): List<SourceFile>

    override fun close() {}
}

/** What one import may bring. */
class Limits(val files: Int = 256, val bytes: Long = 16L shl 30)

/** Told of every piece that was copied; ends the import by throwing [ImportCancelled]. */
fun interface ImportProgress {
    /** [total] is null while it is not known. */
    fun copied(bytes: Long, total: Long?)
}

class ImportCancelled : Exception("the import was cancelled")

/** [path] if it stays within the folder that it is put into; anything else is refused. */
fun checkedPath(path: String): String {
    val parts = path.split("/")
    val why = when {
        path.startsWith("/") -> "is an absolute path"
        parts.any { it == ".." } -> "leads out of its folder"
        parts.any { it.isEmpty() || it == "." } || '\\' in path || path.any { it.isISOControl() } -> "is no plain file name"
        path.length > 200 || parts.size > 8 -> "is too long"
        else -> return path
    }
    throw Refused("nothing was imported: the name '${path.filterNot { it.isISOControl() }.take(80)}' in it $why")
}
