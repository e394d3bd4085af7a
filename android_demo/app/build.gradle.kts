// The demo app. Its logic is tested on the JVM by Maven, and apk/build.py makes an APK of the same sources.
import javax.inject.Inject
import org.gradle.process.ExecOperations
import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    id("com.android.application")
}

val repository = layout.projectDirectory.dir("../..")
val pyproject = providers.fileContents(repository.file("pyproject.toml")).asText
val release = Regex("^version = \"(.+)\"", RegexOption.MULTILINE).find(pyproject.get())!!.groupValues[1]

// Of models/, in the APK: apk/build.py has the same.
val bundles = listOf("q-mqa", "qkv")

android {
    namespace = "io.github.edgeqkv.demo"
    compileSdk = 35
    defaultConfig {
        applicationId = "io.github.edgeqkv.demo"
        minSdk = 24
        targetSdk = 35
        versionName = release
        versionCode = release.split(".").fold(0) { code, part -> code * 100 + part.toInt() }
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64") // those of :edgeqkv; ONNX Runtime comes with more
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }
    packaging {
        jniLibs {
            excludes += "**/libonnxruntime4j_jni.so" // of ONNX Runtime's Java classes, which nobody calls
        }
    }
    // Maven runs the tests, over this computer's JNI library.
    sourceSets.getByName("test").setRoot("src/no-tests-here")
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_11
    }
}

dependencies {
    implementation(project(":edgeqkv"))
}

/** The built-in models as assets: `edgeqkv export`, which `make setup` installs. -Pedgeqkv.command= names another one. */
abstract class ExportBundles @Inject constructor(private val processes: ExecOperations) : DefaultTask() {
    @get:Input
    abstract val command: Property<String>

    @get:InputFiles
    @get:PathSensitive(PathSensitivity.NAME_ONLY)
    abstract val models: ConfigurableFileCollection

    @get:OutputDirectory
    abstract val assets: DirectoryProperty

    @TaskAction
    fun export() {
        for (model in models.files) {
            val bundle = assets.dir("bundles/${model.name}").get().asFile
            processes.exec {
                commandLine(command.get(), "export", model.path, "--out", bundle.path, "--weights", "int8", "--cache", "int8")
            }
        }
    }
}

androidComponents {
    onVariants { variant ->
        val export = tasks.register<ExportBundles>("export${variant.name.replaceFirstChar(Char::uppercase)}Bundles") {
            command = providers.gradleProperty("edgeqkv.command").orElse(repository.file(".venv/bin/edgeqkv").asFile.path)
            models.from(bundles.map { repository.dir("models/$it") })
        }
        variant.sources.assets?.addGeneratedSourceDirectory(export, ExportBundles::assets)
    }
}
