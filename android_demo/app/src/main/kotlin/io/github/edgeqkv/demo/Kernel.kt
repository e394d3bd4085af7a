package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONObject
import java.io.File
import java.io.IOException

/** What Linux says below [root], read as edgeqkv/bench/probe.py does; null is what an app may not read. */
class Kernel(private val root: File = File("/")) {
    private val cores: List<File>
        get() = list("sys/devices/system/cpu") { it.matches(Regex("cpu\\d+")) }.sortedBy { it.name.drop(3).toInt() }

    private val cpuInfo: Map<String, String> // the first core's
        get() = fields("proc/cpuinfo").reversed().toMap()

    val frequencies: List<Long>? get() = eachCore("scaling_cur_freq")

    /** What the system allows each core at the moment. */
    val limits: List<Long>? get() = eachCore("scaling_max_freq")

    val governors: List<String>? get() = cores.mapNotNull { text(File(it, "cpufreq/scaling_governor")) }.ifEmpty { null }

    val clusters: JSONArray?
        get() = eachCore("cpuinfo_max_freq")?.groupingBy { it }?.eachCount()?.toSortedMap()
            ?.map { (khz, cores) -> JSONObject().put("cores", cores).put("max_khz", khz) }?.let(::JSONArray)

    val temperatures: Map<String, Long>
        get() = list("sys/class/thermal") { it.startsWith("thermal_zone") }.mapNotNull { zone ->
            val value = text(File(zone, "temp"))?.toLongOrNull() ?: return@mapNotNull null
            (text(File(zone, "type")) ?: zone.name) to value
        }.toMap()

    val cpu: String?
        get() = cpuInfo.let { info ->
            info["CPU part"]?.let { "ARM implementer ${info["CPU implementer"] ?: "?"} part $it" }
                ?: info["model name"] ?: info["Hardware"]
        }

    val features: List<String>? get() = (cpuInfo["flags"] ?: cpuInfo["Features"])?.split(" ")?.sorted()

    val affinity: String? get() = fields("proc/self/status").toMap()["Cpus_allowed_list"]

    val bootId: String? get() = text(File(root, "proc/sys/kernel/random/boot_id"))

    private fun eachCore(name: String): List<Long>? =
        cores.mapNotNull { text(File(it, "cpufreq/$name"))?.toLongOrNull() }.ifEmpty { null }

    private fun list(path: String, wanted: (String) -> Boolean): List<File> =
        File(root, path).listFiles { file -> wanted(file.name) }.orEmpty().toList()

    private fun fields(path: String): List<Pair<String, String>> =
        text(File(root, path)).orEmpty().lines().filter { ':' in it }
            .map { it.substringBefore(':').trim() to it.substringAfter(':').trim() }

    private fun text(file: File): String? = try {
        file.readText().trim().ifEmpty { null }
    } catch (error: IOException) {
        null
    } catch (error: SecurityException) {
        null
    }
}
