package io.github.edgeqkv.demo

import org.json.JSONArray
import org.json.JSONObject

/** What a record says of the phone and of this app. Asked on the thread that measures. */
interface Phone {
    /** The record's `environment`. */
    fun environment(): JSONObject

    /** The record's `app`. */
    fun app(): JSONObject

    fun vitals(): Vitals

    val availableBytes: Long
}

/** What moves during a run; null is what the phone does not say. Frequencies in kHz, temperatures in 1/1000 °C. */
data class Vitals(
    val frequencies: List<Long>? = null,
    val limits: List<Long>? = null,
    val temperatures: Map<String, Long>? = null,
    val batteryPercent: Int? = null,
    val batteryStatus: String? = null,
    val onMains: Boolean? = null,
    val thermalStatus: Int? = null,
    val screenOn: Boolean? = null,
    val locked: Boolean? = null,
    val inFront: String? = null,
) {
    fun json(): JSONObject = JSONObject()
        .put("frequencies_khz", orNull(frequencies?.let(::JSONArray)))
        .put("limits_khz", orNull(limits?.let(::JSONArray)))
        .put("temperatures", orNull(temperatures?.let(::JSONObject)))
        .put("battery_percent", orNull(batteryPercent))
        .put("battery_status", orNull(batteryStatus))
        .put("on_mains", orNull(onMains))
        .put("thermal_status", orNull(thermalStatus))
        .put("screen_on", orNull(screenOn))
        .put("locked", orNull(locked))
        .put("in_front", orNull(inFront))
}

/** Stands for what an app that is not in front cannot know. */
const val ANOTHER_APP = "another app"

fun orNull(value: Any?): Any = value ?: JSONObject.NULL

private const val HOTTER = 15_000 // 1/1000 °C: a sensor that rises by more during a run is a sign of throttling

/** Whether the phone got slower while it was measured, by the rule of edgeqkv/bench/machine.py; null when it says nothing. */
fun hasThrottled(vitals: List<Vitals>): Boolean? {
    if (vitals.size < 2) return null
    val first = vitals.first()
    val last = vitals.last()
    val later = vitals.drop(1)
    val signs = mutableListOf<Boolean>()
    if (!first.limits.isNullOrEmpty() && !last.limits.isNullOrEmpty()) {
        signs += later.any { !it.limits.isNullOrEmpty() && it.limits.min() < first.limits.min() }
    }
    val busy = later.mapNotNull { it.frequencies?.maxOrNull() }
    if (busy.size > 1) signs += busy.drop(1).min() < 0.9 * busy[0]
    if (!first.temperatures.isNullOrEmpty() && !last.temperatures.isNullOrEmpty()) {
        signs += first.temperatures.any { (zone, value) -> (last.temperatures[zone] ?: value) - value > HOTTER }
    }
    val statuses = later.mapNotNull { it.thermalStatus }
    if (statuses.isNotEmpty()) signs += statuses.max() > 0
    return if (signs.isEmpty()) null else signs.any { it }
}
