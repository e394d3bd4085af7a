package io.github.edgeqkv.demo

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException

/** Hands out the two files that the compare screen shares, to whom the user chose and to nobody else; read only. */
class SharedFiles : ContentProvider() {
    override fun onCreate() = true

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        if (mode != "r") throw FileNotFoundException("$uri may only be read")
        return ParcelFileDescriptor.open(file(uri), ParcelFileDescriptor.MODE_READ_ONLY)
    }

    override fun query(uri: Uri, columns: Array<String>?, where: String?, values: Array<String>?, order: String?): Cursor {
        val file = file(uri)
        val known = mapOf<String, Any>(OpenableColumns.DISPLAY_NAME to file.name, OpenableColumns.SIZE to file.length())
        val asked = columns?.filter { it in known } ?: known.keys.toList()
        return MatrixCursor(asked.toTypedArray(), 1).apply { addRow(asked.map { known[it] }) }
    }

    override fun getType(uri: Uri): String? = TYPES[uri.lastPathSegment]

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun delete(uri: Uri, where: String?, values: Array<String>?) = 0

    override fun update(uri: Uri, values: ContentValues?, where: String?, arguments: Array<String>?) = 0

    private fun file(uri: Uri): File {
        val name = uri.lastPathSegment
        if (name !in TYPES.keys) throw FileNotFoundException("$uri is not shared")
        return place(context!!, name!!)
    }

    companion object {
        const val LINES = "edgeqkv-results.jsonl"
        const val PICTURE = "edgeqkv-results.png"
        private val TYPES = mapOf(LINES to "text/plain", PICTURE to "image/png")

        /** Where a file is to be written before it is shared. */
        fun place(context: Context, name: String): File = File(File(context.cacheDir, "shared").apply { mkdirs() }, name)

        fun uri(context: Context, name: String): Uri = Uri.parse("content://${context.packageName}.shared/$name")
    }
}
