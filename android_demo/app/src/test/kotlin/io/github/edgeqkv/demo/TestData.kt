package io.github.edgeqkv.demo

import io.github.edgeqkv.Bundle
import io.github.edgeqkv.EdgeQKV
import io.github.edgeqkv.OpenOptions
import org.json.JSONArray
import org.json.JSONObject
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.assertThrows
import java.io.File
import java.util.concurrent.Executor
import java.util.concurrent.Executors

/** What tests/runtimes/android/prepare.py wrote, and this machine's ONNX Runtime. */
object TestData {
    val folder = File(System.getProperty("edgeqkv.data"))
    val results = File(System.getProperty("edgeqkv.results"))
    val sources = File(System.getProperty("edgeqkv.sources"))
    private val onnxRuntime = File(System.getProperty("edgeqkv.onnxruntime"))
    private val runner = File(System.getProperty("edgeqkv.runner"))

    fun model(name: String) = InstalledModel.read(File(folder, name), builtIn = false)

    fun open(folder: File): Bundle = EdgeQKV.open(folder, OpenOptions { threads = 1; onnxRuntimeLibrary = onnxRuntime })

    /** What Python wrote of a model's greedy text. */
    fun generated(bundle: String): JSONObject =
        objects(JSONArray(File(folder, "generated.json").readText()))
            .first { it.getString("bundle") == bundle && it.getString("kernel") == "fused" }

    /** edgeqkv-run, which is the same worker, in the place of the app's services. */
    fun startProcess(): LineProcess {
        val command = listOf(runner.path, "--worker", "--library", onnxRuntime.path)
        val process = ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start()
        return LineProcess(process.inputStream, process.outputStream) { process.destroyForcibly() }
    }
}

/** One thread, whose end a test can wait for. */
class Worker : Executor {
    private val thread = Executors.newSingleThreadExecutor { Thread(it).apply { isDaemon = true } }

    override fun execute(task: Runnable) = thread.execute(task)

    /** Returns when all that was given before is done. */
    fun settle() {
        thread.submit {}.get()
    }
}

class TestPhone(private val told: List<Vitals> = listOf(Vitals(thermalStatus = 0, screenOn = true)), private val memory: Long = 1L shl 40) :
    Phone {
    private var asked = 0

    override val availableBytes get() = memory

    override fun environment(): JSONObject {
        val unknown = listOf("soc", "cpu_features", "clusters", "os_kernel", "governors", "affinity", "boot_id", "disk_free_bytes")
        val known = JSONObject()
            .put("machine", "aarch64")
            .put("model", "A phone of the test's")
            .put("cpu", orNull(Kernel().cpu))
            .put("cores", 4)
            .put("memory_bytes", 8L shl 30)
            .put("memory_available_bytes", memory)
            .put("os", "Android 15")
            .put("emulated", false)
        unknown.forEach { known.put(it, JSONObject.NULL) }
        return known
    }

    override fun app(): JSONObject = JSONObject()
        .put("package", "io.github.edgeqkv.demo")
        .put("version_name", "0.2.0")
        .put("version_code", 200)
        .put("apk_sha256", JSONObject.NULL)
        .put("memory", JSONObject.NULL)

    override fun vitals() = told[minOf(asked++, told.lastIndex)]
}

fun assertRefused(sentence: String, call: () -> Unit) {
    val message = assertThrows<Refused> { call() }.message
    assertTrue(Regex(sentence).containsMatchIn(message), message)
}
