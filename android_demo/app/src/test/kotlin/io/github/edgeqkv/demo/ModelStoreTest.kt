package io.github.edgeqkv.demo

import io.github.edgeqkv.EdgeQKVException
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream

class ModelStoreTest {
    @TempDir
    lateinit var root: File

    private val bundle = File(TestData.folder, "q-mqa")
    private val silent = ImportProgress { _, _ -> }

    private fun store(limits: Limits = Limits()) = ModelStore(File(root, "bundles"), limits) { TestData.open(it).close() }

    private fun source(files: Map<String, ByteArray>, name: String = "q-mqa") = object : BundleSource {
        override val name = name

        override fun files(progress: ImportProgress) =
            files.map { (path, bytes) -> SourceFile(path, bytes.size.toLong()) { bytes.inputStream() } }
    }

    private fun bundleFiles(prefix: String = ""): Map<String, ByteArray> =
        bundle.walk().filter { it.isFile }.associate { prefix + it.relativeTo(bundle).path to it.readBytes() }

    private fun zip(files: Map<String, ByteArray>): ByteArray = ByteArrayOutputStream().also { out ->
        ZipOutputStream(out).use { zip ->
            for ((path, bytes) in files) {
                zip.putNextEntry(ZipEntry(path))
                zip.write(bytes)
            }
        }
    }.toByteArray()

    private fun zipSource(bytes: ByteArray, limits: Limits = Limits()) =
        ZipSource("q-mqa.zip", { bytes.inputStream() }, File(root, "scratch.zip"), limits)

    /** Whole or not at all: no folder, not even an unfinished one, and no copy of a zip. */
    private fun assertNothingLeft(except: Set<String> = emptySet()) {
        val left = File(root, "bundles/imported").list().orEmpty().toSet()
        assertEquals(except, left)
        assertFalse(File(root, "scratch.zip").exists())
    }

    @Test
    fun `a folder is copied, checked and then there`() {
        val store = store()
        var copied = 0L
        var total: Long? = null
        val model = store.import(source(bundleFiles())) { bytes, all ->
            copied += bytes
            total = all
            assertEquals(emptyList<InstalledModel>(), store.models(), "half a bundle is no bundle")
        }
        assertEquals(listOf(model), store.models())
        assertEquals(copied, total)
        assertEquals(listOf("Q-MQA", "int8", "fp32", 512), listOf(model.variant, model.weights, model.cache, model.capacity))
        assertEquals(model.bytes, copied)
        assertEquals("imported/q-mqa", model.key)
        TestData.open(model.folder).use { assertEquals(it.info.cacheBytes, model.cacheBytes) }
        assertEquals("imported/q-mqa-2", store.import(source(bundleFiles()), silent).key)
        store.delete(model)
        assertEquals(listOf("q-mqa-2"), store().models().map { it.name })
    }

    @Test
    fun `a zip of a folder beside what Macs add is that folder`() {
        val files = bundleFiles("my model/") + mapOf("__MACOSX/my model/._edgeqkv.json" to ByteArray(3))
        val model = store().import(zipSource(zip(files)), silent)
        assertEquals(bundleFiles().keys, model.folder.walk().filter { it.isFile }.map { it.relativeTo(model.folder).path }.toSet())
        assertNothingLeft(setOf("q-mqa"))
    }

    @ParameterizedTest
    @ValueSource(strings = ["../escaped", "onnx/../../escaped", "/etc/escaped", "onnx//x", "onnx\\..\\x", "./x", "a\u0000b"])
    fun `names that lead out of the folder are refused`(name: String) {
        assertRefused("nothing was imported: the name ") {
            store().import(source(bundleFiles() + mapOf(name to ByteArray(1))), silent)
        }
        assertNothingLeft()
        assertFalse(root.walk().any { it.name == "escaped" })
    }

    @Test
    fun `a zip may not lead out of the folder either`() {
        assertRefused("leads out of its folder") { store().import(zipSource(zip(bundleFiles() + mapOf("../escaped" to ByteArray(1)))), silent) }
        assertNothingLeft()
    }

    @Test
    fun `a link in a zip is refused`() {
        val bytes = zip(bundleFiles() + mapOf("zlink" to "edgeqkv.json".toByteArray()))
        // Java writes no kind of file: the last entry of the directory gets a link's, as zip --symlinks writes it.
        val name = String(bytes, Charsets.ISO_8859_1).lastIndexOf("zlink")
        bytes[name - 46 + 5] = 3 // made on Unix
        bytes[name - 46 + 41] = 0xa1.toByte() // mode 0120777
        assertRefused("zlink in q-mqa.zip is a link") { store().import(zipSource(bytes), silent) }
        assertNothingLeft()
    }

    @Test
    fun `what is no zip, or half of one, is refused`() {
        val whole = zip(bundleFiles())
        for (bytes in listOf(ByteArray(0), "no zip".toByteArray(), whole.copyOf(whole.size / 2), whole.copyOfRange(99, whole.size))) {
            assertRefused("is not a zip") { store().import(zipSource(bytes), silent) }
            assertNothingLeft()
        }
    }

    @Test
    fun `too many files or bytes are refused`() {
        val many = bundleFiles() + (0..300).associate { "x$it" to ByteArray(1) }
        assertRefused("more than 256 files") { store().import(source(many), silent) }
        assertRefused("more than 256 files") { store().import(zipSource(zip(many)), silent) }
        val small = Limits(bytes = 1 shl 20)
        assertRefused("no more than 1 MiB are taken") { store(small).import(source(bundleFiles()), silent) }
        assertRefused("q-mqa.zip has more than 1 MiB") { store().import(zipSource(zip(bundleFiles()), small), silent) }
        val bomb = zip(mapOf("edgeqkv.json" to ByteArray(1), "zeros" to ByteArray(4 shl 20)))
        assertTrue(bomb.size < 1 shl 16)
        assertRefused("no more than 1 MiB are taken") { store(small).import(zipSource(bomb, small), silent) }
        assertNothingLeft()
    }

    @Test
    fun `a source that has more than it says is refused`() {
        val lying = object : BundleSource {
            override val name = "lying"

            override fun files(progress: ImportProgress) = listOf(
                SourceFile("edgeqkv.json", 1) { ByteArray(1).inputStream() },
                SourceFile("weights", null) { generateSequence { 0 }.iterator().let { Endless } },
            )
        }
        assertRefused("more than 1 MiB") { store(Limits(bytes = 1 shl 20)).import(lying, silent) }
        assertNothingLeft()
    }

    private object Endless : java.io.InputStream() {
        override fun read() = 0

        override fun read(into: ByteArray, from: Int, length: Int) = length
    }

    @Test
    fun `a damaged bundle is not taken, in the library's words`() {
        val weights = bundleFiles().maxByOrNull { it.value.size }!!.key
        val damaged = bundleFiles().toMutableMap().apply { this[weights] = getValue(weights).also { it[it.size / 2]++ } }
        val error = assertThrows<EdgeQKVException> { store().import(source(damaged), silent) }
        assertEquals(EdgeQKVException.Code.BAD_INPUT, error.code)
        assertTrue("sha256" in error.message, error.message)
        assertRefused("it has no edgeqkv.json") { store().import(source(mapOf("readme" to ByteArray(1))), silent) }
        val two = bundleFiles("a/") + bundleFiles("b/")
        assertRefused("holds several bundles") { store().import(source(two), silent) }
        assertNothingLeft()
    }

    @Test
    fun `cancelled, failed and killed imports leave nothing`() {
        var pieces = 0
        assertThrows<ImportCancelled> { store().import(zipSource(zip(bundleFiles()))) { _, _ -> if (++pieces == 3) throw ImportCancelled() } }
        assertNothingLeft()
        val failing = object : BundleSource by source(bundleFiles()) {
            override fun files(progress: ImportProgress) =
                source(bundleFiles()).files(progress) + SourceFile("z", null) { throw IOException("the cable was pulled") }
        }
        assertEquals("a file cannot be read or written: the cable was pulled", sentence(assertThrows<IOException> { store().import(failing, silent) }))
        assertNothingLeft()
        File(root, "bundles/imported/.unfinished-x/onnx").mkdirs()
        assertEquals(emptyList<InstalledModel>(), store().models())
        assertNothingLeft()
    }

    @Test
    fun `the app's own models are put in place once, and replaced by those of a newer app`() {
        val store = store()
        var opened = 0
        fun counted(files: Map<String, ByteArray>) = object : BundleSource {
            override val name = "q-mqa"

            override fun files(progress: ImportProgress) = files.map { (path, bytes) ->
                SourceFile(path, null) {
                    opened++
                    bytes.inputStream()
                }
            }
        }
        store.installBuiltIn(counted(bundleFiles()))
        val model = store.models().single()
        assertEquals("built-in/q-mqa", model.key)
        opened = 0
        store.installBuiltIn(counted(bundleFiles()))
        assertEquals(1, opened, "only the manifest was looked at")
        assertRefused("is part of this app") { store.delete(model) }
        val other = File(TestData.folder, "q-kv")
        store.installBuiltIn(counted(other.walk().filter { it.isFile }.associate { it.relativeTo(other).path to it.readBytes() }))
        assertEquals(listOf("Q-K=V"), store.models().map { it.variant })
    }

    @Test
    fun `a bundle that was damaged later is listed with its problem`() {
        val store = store()
        val model = store.import(source(bundleFiles()), silent)
        File(model.folder, MANIFEST).writeText("{")
        assertTrue("is damaged" in store.models().single().problem!!)
        File(model.folder, MANIFEST).delete()
        assertTrue("cannot be read" in store.models().single().problem!!)
    }

    @Test
    fun `an import shows its progress, and a refusal its sentence`() {
        val work = Worker()
        val models = ModelsModel(store(), work)
        val seen = mutableListOf<ModelsModel.State>()
        models.watch { seen += models.state }
        models.start { listOf(source(bundleFiles(), "built")) }
        models.import { zipSource(zip(bundleFiles())) }
        work.settle()
        assertFalse(models.state.preparing)
        assertEquals(listOf("built", "q-mqa"), models.state.models.map { it.name })
        assertNull(models.state.import)
        val shown = seen.mapNotNull { it.import }
        assertTrue(shown.any { it.total == null } && shown.any { it.total != null }, "$shown")
        assertTrue(shown.all { it.total == null || it.done <= it.total!! }, "$shown")
        models.import { zipSource(ByteArray(9)) }
        work.settle()
        assertTrue("is not a zip" in models.state.problem!!)
        models.import { throw SecurityException("not yours") }
        work.settle()
        assertEquals("not yours", models.state.problem)
        models.delete(models.state.models[1])
        work.settle()
        assertEquals(null to listOf("built"), models.state.problem to models.state.models.map { it.name })
    }

    @Test
    fun `a running import can be cancelled`() {
        val work = Worker()
        val models = ModelsModel(store(), work)
        models.watch { if (models.state.import?.total != null) models.cancel() }
        models.import { zipSource(zip(bundleFiles())) }
        work.settle()
        assertEquals(emptyList<InstalledModel>() to null, models.state.models to models.state.problem)
        assertNothingLeft()
    }
}
