package io.github.edgeqkv

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import java.io.File
import java.lang.ProcessBuilder.Redirect.INHERIT

/** In a process of its own, whose library path has no libedgeqkv_jni.so. */
class MissingLibraryTest {
    @Test
    fun `an app without the native library gets a sentence each time`() {
        val java = File(System.getProperty("java.home"), "bin/java").path
        val classes = System.getProperty("surefire.test.class.path") ?: System.getProperty("java.class.path")
        val main = MissingLibrary::class.java.name
        val process = ProcessBuilder(java, "-Djava.library.path=/nowhere", "-cp", classes, main).redirectError(INHERIT).start()
        val lines = process.inputStream.bufferedReader().readLines()
        assertEquals(0, process.waitFor(), lines.toString())
        assertEquals(3, lines.size, lines.toString())
        for (line in lines) check(line.startsWith("MISSING libedgeqkv_jni.so cannot be loaded: ")) { line }
    }
}

internal object MissingLibrary {
    @JvmStatic
    fun main(arguments: Array<String>) {
        check(arguments.isEmpty())
        for (call in listOf({ EdgeQKV.open(File("bundle")) }, { EdgeQKV.version }, { EdgeQKV.memory() })) {
            try {
                call()
            } catch (error: EdgeQKVException) {
                println("${error.code} ${error.message}")
            }
        }
    }
}
