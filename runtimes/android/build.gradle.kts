// The library for Gradle and Android Studio, as the module :edgeqkv of android_demo/, whose build.gradle.kts names the Android
// plugin's version (9.2: Kotlin is built in). pom.xml compiles the same sources for the JVM, and tests them.
import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.library")
    `maven-publish`
}

val repository = layout.projectDirectory.dir("../..")
val pyproject = providers.fileContents(repository.file("pyproject.toml")).asText

group = "io.github.edgeqkv"
version = Regex("^version = \"(.+)\"", RegexOption.MULTILINE).find(pyproject.get())!!.groupValues[1]

android {
    namespace = "io.github.edgeqkv"
    compileSdk = 35
    ndkVersion = "28.2.13676358" // links for pages of 16 KiB
    defaultConfig {
        minSdk = 24
        consumerProguardFiles("consumer-rules.pro")
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
        externalNativeBuild {
            cmake {
                arguments += "-DANDROID_STL=c++_static" // one library in the APK
                targets += "edgeqkv_jni"
            }
        }
    }
    externalNativeBuild {
        cmake {
            path = file("src/main/cpp/CMakeLists.txt")
            version = "3.22.1"
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
    // The tests load a JNI library of the computer's: pom.xml runs them.
    sourceSets.getByName("test").setRoot("src/no-tests-here")
    publishing {
        singleVariant("release") {
            withSourcesJar()
        }
    }
}

kotlin {
    explicitApi()
    compilerOptions {
        jvmTarget = JvmTarget.JVM_11
    }
}

dependencies {
    // For tokenFlow alone. An app that does not call it may leave it out.
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.10.2")
    // Its libonnxruntime.so; an app may bring another version from 1.23 on, or 1.29 for stock graphs.
    runtimeOnly("com.microsoft.onnxruntime:onnxruntime-android:1.29.0")
}

tasks.withType<Jar>().configureEach {
    from(repository.file("LICENSE")) {
        into("META-INF")
    }
}

publishing {
    publications.register<MavenPublication>("release") {
        artifactId = "edgeqkv-android"
        afterEvaluate {
            from(components["release"])
        }
        pom {
            name = "edgeqkv for Android"
            description = "Runs language models whose cached key is their value (Q-K=V, Q-MQA, MLA) with a static one-tensor cache"
            // The project's address is its publisher's to say: -Pedgeqkv.url=https://...
            url = providers.gradleProperty("edgeqkv.url")
            licenses {
                license {
                    name = "Apache-2.0"
                    url = "https://www.apache.org/licenses/LICENSE-2.0.txt"
                    distribution = "repo"
                }
            }
            scm {
                url = providers.gradleProperty("edgeqkv.url")
            }
        }
    }
}
