package io.github.edgeqkv.demo

import org.json.JSONException
import org.json.JSONObject
import java.io.File
import java.io.IOException

/** A bundle on this phone, and what its manifest says of it. [problem] is why it cannot be used; the facts are empty then. */
data class InstalledModel(
    val name: String,
    val folder: File,
    val builtIn: Boolean,
    val variant: String = "",
    val weights: String = "",
    val cache: String = "",
    val capacity: Int = 0,
    val cacheBytes: Long = 0,
    /** Of all its files. */
    val bytes: Long = 0,
    val problem: String? = null,
) {
    /** The same for the same bundle in this app, also after a restart. */
    val key: String get() = (if (builtIn) "built-in/" else "imported/") + name

    /** In one line, as records name their subject. */
    val facts: String
        get() = "$variant, $weights weights, $cache cache, ${count(capacity)} positions in ${mib(cacheBytes)} MiB, files ${mib(bytes)} MiB"

    fun manifest(): JSONObject = readManifest(folder)

    companion object {
        fun read(folder: File, builtIn: Boolean): InstalledModel {
            val plain = InstalledModel(folder.name, folder, builtIn, bytes = folder.walk().filter { it.isFile }.sumOf { it.length() })
            return try {
                val manifest = readManifest(folder)
                val artifact = manifest.getJSONArray("artifacts").getJSONObject(0)
                plain.copy(
                    variant = manifest.getJSONObject("model").getString("variant"),
                    weights = artifact.optJSONObject("weights")?.optString("scheme") ?: "",
                    cache = artifact.getJSONObject("cache").getString("dtype"),
                    capacity = manifest.getInt("capacity"),
                    cacheBytes = artifact.getJSONObject("cache").getLong("bytes"),
                )
            } catch (error: JSONException) {
                plain.copy(problem = "${folder.name}/$MANIFEST is damaged: ${error.message}")
            } catch (error: IOException) {
                plain.copy(problem = sentence(error))
            }
        }

        private fun readManifest(folder: File) = JSONObject(File(folder, MANIFEST).readText())
    }
}
