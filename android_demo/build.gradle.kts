// One version of the Android plugin for both modules. It brings Kotlin.
plugins {
    id("com.android.application") version "9.2.0" apply false
    id("com.android.library") version "9.2.0" apply false
}
