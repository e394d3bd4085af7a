package io.github.edgeqkv.demo

import java.io.File

/**
 * The bundles under [root]: those that are part of the app, and those that the user imported. A folder there is whole: it is
 * filled under another name, checked by [check], which opens it, and then renamed. One thread at a time imports.
 */
class ModelStore(private val root: File, private val limits: Limits = Limits(), private val check: (File) -> Unit) {
    private val builtIn = File(root, "built-in")
    private val imported = File(root, "imported")

    init {
        listOf(builtIn, imported).forEach { folder ->
            folder.mkdirs()
            // What an import that was killed has left.
            folder.listFiles { file -> file.name.startsWith(UNFINISHED) }?.forEach { it.deleteRecursively() }
        }
    }

    fun models(): List<InstalledModel> = listed(builtIn, true) + listed(imported, false)

    fun find(key: String): InstalledModel? = models().find { it.key == key }

    /** Copies [source] here under a free name. Whatever fails leaves nothing behind. */
    fun import(source: BundleSource, progress: ImportProgress): InstalledModel {
        val name = plainName(source.name)
        val free = (sequenceOf(name) + generateSequence(2) { it + 1 }.map { "$name-$it" }).first { !File(imported, it).exists() }
        return source.use { InstalledModel.read(bring(it, imported, free, progress), builtIn = false) }
    }

    /** Brings a bundle of the app's own here, unless the same one is here already. */
    fun installBuiltIn(source: BundleSource) {
        val name = plainName(source.name)
        val manifest = source.files { _, _ -> }.single { it.path == MANIFEST }.open().use { it.readBytes() }
        val there = File(builtIn, "$name/$MANIFEST")
        if (there.exists() && there.readBytes().contentEquals(manifest)) return
        there.parentFile!!.deleteRecursively()
        bring(source, builtIn, name) { _, _ -> }
    }

    fun delete(model: InstalledModel) {
        if (model.builtIn) throw Refused("${model.name} is part of this app")
        // Renamed first: a deletion that is killed leaves no half a bundle.
        val away = File(imported, "$UNFINISHED${model.name}")
        away.deleteRecursively()
        if (model.folder.renameTo(away)) away.deleteRecursively()
        if (model.folder.exists()) throw Refused("${model.name} cannot be deleted")
    }

    private fun listed(folder: File, builtIn: Boolean) =
        folder.listFiles { file -> file.isDirectory && !file.name.startsWith(UNFINISHED) }.orEmpty().sortedBy { it.name }
            .map { InstalledModel.read(it, builtIn) }

    private fun bring(source: BundleSource, into: File, name: String, progress: ImportProgress): File {
        val unfinished = File(into, "$UNFINISHED$name")
        unfinished.deleteRecursively()
        try {
            copy(source.name, bundleFiles(source.name, source.files(progress)), unfinished, progress)
            check(unfinished)
            val folder = File(into, name)
            if (!unfinished.renameTo(folder)) throw Refused("${folder.name} cannot be put in its place")
            return folder
        } finally {
            unfinished.deleteRecursively()
        }
    }

    /** The files of the one bundle that is among [files], by their path in it. */
    private fun bundleFiles(name: String, files: List<SourceFile>): Map<String, SourceFile> {
        val found = files.map { it.path }.filter { it == MANIFEST || it.endsWith("/$MANIFEST") }
        val nearest = found.minOfOrNull { path -> path.count { it == '/' } }
        val manifests = found.filter { path -> path.count { it == '/' } == nearest }
        if (manifests.isEmpty()) throw Refused("$name is not a bundle: it has no $MANIFEST; edgeqkv export writes one")
        if (manifests.size > 1) throw Refused("$name holds several bundles; import them one by one")
        val parent = manifests[0].removeSuffix(MANIFEST)
        // Names are looked at all over: a zip that holds a bad one is not to be trusted for the rest.
        files.forEach { checkedPath(it.path) }
        val ours = files.filter { it.path.startsWith(parent) }
        if (ours.size > limits.files) throw tooMany(name, limits)
        return ours.associateBy { it.path.removePrefix(parent) }
    }

    private fun copy(source: String, files: Map<String, SourceFile>, into: File, progress: ImportProgress) {
        val total = files.values.fold<SourceFile, Long?>(0) { sum, file -> file.size?.let { sum?.plus(it) } }
        val most = minOf(limits.bytes, root.usableSpace)
        if (total != null && total > most) {
            val why = if (most < limits.bytes) "${mib(most, 0)} MiB are free here" else "no more than ${mib(most, 0)} MiB are taken"
            throw Refused("nothing was imported: it has ${mib(total, 0)} MiB, and $why")
        }
        var done = 0L
        for ((path, file) in files) {
            val target = File(into, path)
            target.parentFile!!.mkdirs()
            done += file.open().use { copyBounded(it, target, most - done, source) { bytes -> progress.copied(bytes, total) } }
        }
    }

    companion object {
        private const val UNFINISHED = ".unfinished-"

        /** A folder's name of letters, digits and a few signs. */
        fun plainName(name: String): String {
            val plain = name.removeSuffix(".zip").replace(Regex("[^A-Za-z0-9._-]+"), "-").trim('-', '.').take(60)
            return plain.ifEmpty { "model" }
        }
    }
}
