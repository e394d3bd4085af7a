package io.github.edgeqkv.demo

import android.content.pm.PackageInfo
import android.os.Build
import android.os.PowerManager
import android.view.View
import android.view.WindowInsets

/** Marks what asks for Android's version before it calls what API 24 has not; the build looks at all else. */
@Target(AnnotationTarget.FUNCTION)
@Retention(AnnotationRetention.BINARY)
annotation class AsksForVersion

/** Keeps [root] clear of the system's bars, a camera and the keyboard, which lie over the window since Android 15. */
@AsksForVersion
fun keepClearOfBars(root: View) {
    val own = intArrayOf(root.paddingLeft, root.paddingTop, root.paddingRight, root.paddingBottom)
    root.setOnApplyWindowInsetsListener { view, insets -> padded(view, own, insets) }
}

@AsksForVersion
@Suppress("DEPRECATION")
private fun padded(view: View, own: IntArray, insets: WindowInsets): WindowInsets {
    val bars = if (Build.VERSION.SDK_INT >= 30) {
        val type = WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime()
        insets.getInsets(type).let { intArrayOf(it.left, it.top, it.right, it.bottom) }
    } else {
        insets.run { intArrayOf(systemWindowInsetLeft, systemWindowInsetTop, systemWindowInsetRight, systemWindowInsetBottom) }
    }
    view.setPadding(own[0] + bars[0], own[1] + bars[1], own[2] + bars[2], own[3] + bars[3])
    return insets
}

/** Android's own, 0 to 6; null before Android 10. */
@AsksForVersion
fun thermalStatus(power: PowerManager): Int? = if (Build.VERSION.SDK_INT >= 29) power.currentThermalStatus else null

@AsksForVersion
@Suppress("DEPRECATION")
fun versionCode(info: PackageInfo): Long = if (Build.VERSION.SDK_INT >= 28) info.longVersionCode else info.versionCode.toLong()

@AsksForVersion
fun soc(): String? = if (Build.VERSION.SDK_INT >= 31) Build.SOC_MODEL.takeIf { it != Build.UNKNOWN } else null
