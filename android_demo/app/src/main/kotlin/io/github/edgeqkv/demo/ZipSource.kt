package io.github.edgeqkv.demo

import java.io.File
import java.io.InputStream
import java.io.RandomAccessFile
import java.util.zip.ZipFile

/** A bundle in a zip. It is copied to [scratch] first: its directory stands at its end, and the picker may give a pipe. */
class ZipSource(
    override val name: String,
    private val open: () -> InputStream,
    private val scratch: File,
    private val limits: Limits = Limits(),
) : BundleSource {
    private var zip: ZipFile? = null

    override fun files(progress: ImportProgress): List<SourceFile> {
        open().use { copyBounded(it, scratch, limits.bytes, name) { bytes -> progress.copied(bytes, null) } }
        refuseLinks()
        val opened = try {
            ZipFile(scratch)
        } catch (error: java.io.IOException) {
            throw Refused("$name is not a zip that can be read: ${error.message}", error)
        }
        zip = opened
        val entries = opened.entries().asSequence().filter { !it.isDirectory }.toList()
        entries.groupBy { it.name }.values.find { it.size > 1 }?.let {
            throw Refused("$name names the file ${it[0].name.take(80)} twice")
        }
        return entries.map { entry -> SourceFile(entry.name, entry.size.takeIf { it >= 0 }) { opened.getInputStream(entry) } }
    }

    /** Java's classes do not tell what kind of file an entry is; the zip's directory does. */
    private fun refuseLinks() = RandomAccessFile(scratch, "r").use { file ->
        val tail = ByteArray(minOf(file.length(), 22L + 65535).toInt())
        file.seek(file.length() - tail.size)
        file.readFully(tail)
        val end = (tail.size - 22 downTo 0).find { number(tail, it, 4) == END } ?: throw noZip()
        val entries = number(tail, end + 10, 2).toInt()
        val (size, start) = number(tail, end + 12, 4) to number(tail, end + 16, 4)
        if (entries == 0xffff || start == 0xffffffffL) {
            throw Refused("$name is a zip of more than 4 GB, which this app does not read: unpack it, and import the folder")
        }
        if (size > (1 shl 20) || start + size > file.length()) throw if (size > (1 shl 20)) tooMany(name, limits) else noZip()
        val directory = ByteArray(size.toInt())
        file.seek(start)
        file.readFully(directory)
        var at = 0
        repeat(entries) {
            if (at + 46 > directory.size || number(directory, at, 4) != ENTRY) throw noZip()
            val length = number(directory, at + 28, 2).toInt()
            if (at + 46 + length > directory.size) throw noZip()
            val kind = (number(directory, at + 38, 4) shr 28).toInt() // of Unix's mode: 8 a file, 4 a folder, 0 not said
            if (kind !in setOf(0, 4, 8)) {
                val what = String(directory, at + 46, minOf(length, 80)).filterNot { it.isISOControl() }
                throw Refused("nothing was imported: $what in $name is a link or another thing that is no file")
            }
            at += 46 + length + (number(directory, at + 30, 2) + number(directory, at + 32, 2)).toInt()
        }
    }

    private fun noZip() = Refused("$name is not a zip, or not all of one")

    /** Little-endian, unsigned. */
    private fun number(bytes: ByteArray, at: Int, length: Int): Long =
        (length - 1 downTo 0).fold(0L) { value, i -> value shl 8 or (bytes[at + i].toLong() and 0xff) }

    override fun close() {
        zip?.close()
        scratch.delete()
    }

    private companion object {
        const val END = 0x06054b50L
        const val ENTRY = 0x02014b50L
    }
}

fun tooMany(name: String, limits: Limits) = Refused("$name has more than ${limits.files} files, which no bundle has")

/** Copies at most [most] bytes to [file], and says after each piece how many it was. Returns how many there were. */
fun copyBounded(from: InputStream, file: File, most: Long, what: String, copied: (Long) -> Unit): Long {
    var done = 0L
    file.outputStream().use { out ->
        val piece = ByteArray(1 shl 18)
        while (true) {
            val length = from.read(piece)
            if (length < 0) break
            done += length
            if (done > most) throw Refused("nothing was imported: $what has more than ${mib(most, 0)} MiB, for which there is no room")
            out.write(piece, 0, length)
            copied(length.toLong())
        }
        out.fd.sync()
    }
    return done
}
