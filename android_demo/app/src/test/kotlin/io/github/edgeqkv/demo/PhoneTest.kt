package io.github.edgeqkv.demo

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

class PhoneTest {
    @TempDir
    lateinit var root: File

    private fun file(path: String, text: String) = File(root, path).run {
        parentFile.mkdirs()
        writeText(text)
    }

    @Test
    fun `what Linux says of a phone`() {
        for ((core, khz) in listOf(1_800_000, 1_800_000, 2_850_000).withIndex()) {
            val cpu = "sys/devices/system/cpu/cpu$core/cpufreq"
            file("$cpu/cpuinfo_max_freq", "$khz\n")
            file("$cpu/scaling_max_freq", "${khz - 1}\n")
            file("$cpu/scaling_cur_freq", "$core\n")
            file("$cpu/scaling_governor", "schedutil\n")
        }
        file("sys/devices/system/cpu/cpufreq/policy0/x", "")
        file("sys/class/thermal/thermal_zone0/type", "cpu-0\n")
        file("sys/class/thermal/thermal_zone0/temp", "41200\n")
        file("sys/class/thermal/thermal_zone1/type", "locked\n")
        file("proc/cpuinfo", CPU)
        file("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-2\n")
        val kernel = Kernel(root)
        assertEquals(listOf(0L, 1L, 2L), kernel.frequencies)
        assertEquals(listOf(1_799_999L, 1_799_999L, 2_849_999L), kernel.limits)
        assertEquals("""[{"cores":2,"max_khz":1800000},{"cores":1,"max_khz":2850000}]""", kernel.clusters.toString())
        assertEquals(listOf("schedutil", "schedutil", "schedutil"), kernel.governors)
        assertEquals(mapOf("cpu-0" to 41200L), kernel.temperatures)
        assertEquals("ARM implementer 0x41 part 0xd05", kernel.cpu)
        assertEquals(listOf("asimd", "fp"), kernel.features)
        assertEquals("0-2", kernel.affinity)
        assertNull(kernel.bootId)
    }

    @Test
    fun `what an app may not read is unknown`() {
        val kernel = Kernel(root)
        val read = listOf(kernel.frequencies, kernel.limits, kernel.clusters, kernel.governors, kernel.cpu, kernel.features, kernel.affinity)
        assertEquals(List(7) { null }, read)
        assertEquals(emptyMap<String, Long>(), kernel.temperatures)
    }

    @Test
    fun `throttling is seen as the harness sees it`() {
        val cool = Vitals(listOf(1000, 2000), listOf(1000, 2000), mapOf("battery" to 30_000L), thermalStatus = 0)
        assertNull(hasThrottled(listOf(cool)))
        assertNull(hasThrottled(listOf(Vitals(), Vitals())))
        assertFalse(hasThrottled(listOf(cool, cool, cool))!!)
        // Before the load a core rests: only later ones are compared.
        assertFalse(hasThrottled(listOf(cool.copy(frequencies = listOf(300, 300)), cool, cool))!!)
        assertTrue(hasThrottled(listOf(cool, cool, cool.copy(frequencies = listOf(1000, 1700))))!!)
        assertTrue(hasThrottled(listOf(cool, cool.copy(limits = listOf(900, 2000)), cool))!!)
        assertTrue(hasThrottled(listOf(cool, cool.copy(temperatures = mapOf("battery" to 45_001L))))!!)
        assertTrue(hasThrottled(listOf(Vitals(), Vitals(thermalStatus = 1), Vitals(thermalStatus = 0)))!!)
        assertFalse(hasThrottled(listOf(Vitals(thermalStatus = 1), Vitals(thermalStatus = 0)))!!)
    }

    @Test
    fun `only the shell may measure from outside`() {
        assertTrue(BenchSocket.serves(0) && BenchSocket.serves(2000))
        assertFalse(BenchSocket.serves(10_123) || BenchSocket.serves(1000) || BenchSocket.serves(-1))
        assertTrue(BenchSocket.isName("edgeqkv-bench-" + "0123456789abcdef".repeat(2)))
        for (name in listOf(null, "", "edgeqkv-bench-", "edgeqkv-bench-" + "g".repeat(32), "x edgeqkv-bench-" + "0".repeat(32), "edgeqkv-bench-" + "0".repeat(33))) {
            assertFalse(BenchSocket.isName(name), name)
        }
    }

    private companion object {
        const val CPU = """processor	: 0
Features	: fp asimd
CPU implementer	: 0x41
CPU part	: 0xd05

processor	: 2
CPU implementer	: 0x41
CPU part	: 0xd0d
"""
    }
}
