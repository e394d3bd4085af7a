package io.github.edgeqkv.demo

import android.app.ActivityManager
import android.app.KeyguardManager
import android.content.Context
import android.content.Intent
import android.content.IntentFilter
import android.os.BatteryManager
import android.os.Build
import android.os.PowerManager
import org.json.JSONArray
import org.json.JSONObject
import java.io.File
import java.io.InputStream
import java.security.MessageDigest

/** This phone, by what Android and Linux tell an app. [inFront] is whether the user has this app before them. */
class AndroidPhone(private val context: Context, private val inFront: () -> Boolean) : Phone {
    private val kernel = Kernel()

    override val availableBytes: Long get() = memory().availMem

    override fun environment(): JSONObject {
        val memory = memory()
        return JSONObject()
            .put("machine", orNull(System.getProperty("os.arch")))
            .put("model", "${Build.MANUFACTURER} ${Build.MODEL}")
            .put("soc", orNull(soc()))
            .put("cpu", orNull(kernel.cpu))
            .put("cpu_features", orNull(kernel.features?.let(::JSONArray)))
            .put("cores", Runtime.getRuntime().availableProcessors())
            .put("clusters", orNull(kernel.clusters))
            .put("memory_bytes", memory.totalMem)
            .put("memory_available_bytes", memory.availMem)
            .put("disk_free_bytes", context.filesDir.usableSpace)
            .put("os", "Android ${Build.VERSION.RELEASE}")
            .put("os_kernel", orNull(listOfNotNull(System.getProperty("os.name"), System.getProperty("os.version")).joinToString(" ").ifEmpty { null }))
            .put("governors", orNull(kernel.governors?.let(::JSONArray)))
            .put("affinity", orNull(kernel.affinity))
            .put("boot_id", orNull(kernel.bootId))
            .put("emulated", Build.HARDWARE in setOf("goldfish", "ranchu"))
    }

    override fun app(): JSONObject {
        val info = context.packageManager.getPackageInfo(context.packageName, 0)
        return JSONObject()
            .put("package", context.packageName)
            .put("version_name", orNull(info.versionName))
            .put("version_code", versionCode(info))
            .put("apk_sha256", File(context.applicationInfo.sourceDir).inputStream().use(::sha256))
            // The processes say themselves what they take; the host's measurements alone have dumpsys meminfo.
            .put("memory", JSONObject.NULL)
    }

    override fun vitals(): Vitals {
        val battery = context.registerReceiver(null, IntentFilter(Intent.ACTION_BATTERY_CHANGED))
        fun told(name: String) = battery?.getIntExtra(name, -1)?.takeIf { it >= 0 }
        val power = service(PowerManager::class.java)
        val scale = told(BatteryManager.EXTRA_SCALE)?.takeIf { it > 0 }
        val zones = kernel.temperatures.toMutableMap()
        told(BatteryManager.EXTRA_TEMPERATURE)?.let { zones["battery"] = it * 100L } // 1/10 °C
        return Vitals(
            frequencies = kernel.frequencies,
            limits = kernel.limits,
            temperatures = zones.ifEmpty { null },
            batteryPercent = told(BatteryManager.EXTRA_LEVEL)?.let { level -> scale?.let { level * 100 / it } },
            batteryStatus = told(BatteryManager.EXTRA_STATUS)?.let(BATTERY::get),
            onMains = told(BatteryManager.EXTRA_PLUGGED)?.let { it != 0 },
            thermalStatus = thermalStatus(power),
            screenOn = power.isInteractive,
            locked = service(KeyguardManager::class.java).isKeyguardLocked,
            inFront = if (inFront()) "${context.packageName}/.MainActivity" else ANOTHER_APP,
        )
    }

    private fun memory() = ActivityManager.MemoryInfo().also(service(ActivityManager::class.java)::getMemoryInfo)

    /** Every phone has those that are asked for here. */
    private fun <T : Any> service(kind: Class<T>): T = context.getSystemService(kind)!!

    private fun sha256(input: InputStream): String {
        val digest = MessageDigest.getInstance("SHA-256")
        val piece = ByteArray(1 shl 16)
        generateSequence { input.read(piece).takeIf { it >= 0 } }.forEach { digest.update(piece, 0, it) }
        return digest.digest().joinToString("") { "%02x".format(it.toInt() and 0xff) }
    }

    private companion object {
        val BATTERY = mapOf(
            BatteryManager.BATTERY_STATUS_CHARGING to "Charging",
            BatteryManager.BATTERY_STATUS_DISCHARGING to "Discharging",
            BatteryManager.BATTERY_STATUS_NOT_CHARGING to "Not charging",
            BatteryManager.BATTERY_STATUS_FULL to "Full",
        )
    }
}
