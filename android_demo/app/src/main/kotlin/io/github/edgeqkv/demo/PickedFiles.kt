package io.github.edgeqkv.demo

import android.content.ContentResolver
import android.content.Intent
import android.content.res.AssetManager
import android.net.Uri
import android.provider.DocumentsContract
import android.provider.DocumentsContract.Document
import android.provider.OpenableColumns
import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream

/** Keeps what the picker allowed until the import is done, also when the screen that asked is gone. */
fun keepAccess(resolver: ContentResolver, uri: Uri) = try {
    resolver.takePersistableUriPermission(uri, Intent.FLAG_GRANT_READ_URI_PERMISSION)
} catch (error: SecurityException) {
    // Some sources allow it only for as long as the screen lives.
}

private fun letGo(resolver: ContentResolver, uri: Uri) = try {
    resolver.releasePersistableUriPermission(uri, Intent.FLAG_GRANT_READ_URI_PERMISSION)
} catch (error: SecurityException) {
    // It was not kept.
}

private fun open(resolver: ContentResolver, uri: Uri): InputStream =
    resolver.openInputStream(uri) ?: throw FileNotFoundException("the file's source does not answer")

/** A folder that the user picked. */
class PickedFolder(private val resolver: ContentResolver, private val tree: Uri) : BundleSource {
    private val top = DocumentsContract.getTreeDocumentId(tree)
    override val name = nameOf(resolver, DocumentsContract.buildDocumentUriUsingTree(tree, top), Document.COLUMN_DISPLAY_NAME)

    override fun files(progress: ImportProgress): List<SourceFile> =
        mutableListOf<SourceFile>().also { list(top, "", it, 0, progress) }

    private fun list(folder: String, path: String, into: MutableList<SourceFile>, depth: Int, progress: ImportProgress) {
        if (depth > MOST_FOLDERS) throw Refused("$name has folders in folders, more than any bundle")
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
        val columns = arrayOf(Document.COLUMN_DOCUMENT_ID, Document.COLUMN_DISPLAY_NAME, Document.COLUMN_MIME_TYPE, Document.COLUMN_SIZE)
        val cursor = resolver.query(children, columns, null, null, null) ?: throw Refused("$name cannot be listed")
        cursor.use {
            while (it.moveToNext()) {
                progress.copied(0, null)
                val (id, child) = it.getString(0) to path + it.getString(1)
                when {
                    it.getString(2) == Document.MIME_TYPE_DIR -> list(id, "$child/", into, depth + 1, progress)
                    else -> {
                        val uri = DocumentsContract.buildDocumentUriUsingTree(tree, id)
                        into += SourceFile(child, if (it.isNull(3)) null else it.getLong(3)) { open(resolver, uri) }
                    }
                }
                if (into.size > MOST_FILES) throw Refused("$name has more than $MOST_FILES files; pick the bundle's own folder")
            }
        }
    }

    override fun close() = letGo(resolver, tree)

    private companion object {
        const val MOST_FOLDERS = 8
        const val MOST_FILES = 2000
    }
}

/** A zip that the user picked. */
fun pickedZip(resolver: ContentResolver, uri: Uri, cache: File): BundleSource {
    val name = nameOf(resolver, uri, OpenableColumns.DISPLAY_NAME)
    val zip = ZipSource(name, { open(resolver, uri) }, File.createTempFile(PICKED, ".zip", cache))
    return object : BundleSource by zip {
        override fun close() {
            zip.close()
            letGo(resolver, uri)
        }
    }
}

/** Deletes the copies of zips whose import was killed. */
fun clearPicked(cache: File) = cache.listFiles { file -> file.name.startsWith(PICKED) }.orEmpty().forEach { it.delete() }

private fun nameOf(resolver: ContentResolver, uri: Uri, column: String): String = try {
    resolver.query(uri, arrayOf(column), null, null, null)?.use { if (it.moveToFirst()) it.getString(0) else null }
} catch (error: RuntimeException) { // another app answers, as it likes
    null
} ?: "model"

/** The bundles that are part of the app. */
fun builtInBundles(assets: AssetManager): List<BundleSource> = assets.list(ASSETS).orEmpty().map { name ->
    object : BundleSource {
        override val name = name

        override fun files(progress: ImportProgress): List<SourceFile> = list("").toList()

        private fun list(path: String): Sequence<SourceFile> =
            assets.list("$ASSETS/$name/$path".trimEnd('/')).orEmpty().asSequence().flatMap { child ->
                val file = path + child
                if (assets.list("$ASSETS/$name/$file").isNullOrEmpty()) {
                    sequenceOf(SourceFile(file, null) { assets.open("$ASSETS/$name/$file") })
                } else {
                    list("$file/")
                }
            }
    }
}

private const val ASSETS = "bundles"
private const val PICKED = "picked-"
