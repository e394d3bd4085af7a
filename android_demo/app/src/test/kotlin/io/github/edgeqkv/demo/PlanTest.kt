package io.github.edgeqkv.demo

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

class PlanTest {
    @Test
    fun `what is left empty has a default`() {
        val plan = PlanFields().plan(capacity = 512, cores = 8)
        assertEquals(Plan(listOf(120, 248, 504), 8, 128, 8, 9, 1.0), plan)
        assertEquals(Plan(listOf(2, 5, 13), 1, 13, 3, 9, 1.0), PlanFields(steps = "3").plan(capacity = 16, cores = 1))
        val json = plan.json()
        assertEquals(listOf(2, "prefill"), listOf(json.getInt("warm_up_steps"), json.getString("filled")))
    }

    @Test
    fun `what is typed is taken`() {
        val plan = PlanFields("300, 20;100 100", "2", "4", "64", "3", "0,5").plan(capacity = 512, cores = 8)
        assertEquals(Plan(listOf(20, 100, 300), 3, 64, 4, 2, 0.5), plan)
    }

    @Test
    fun `a plan that makes no sense is refused`() {
        fun refused(sentence: String, fields: PlanFields) = assertRefused(sentence) { fields.plan(512, 8) }
        refused("depth 1 is too small: 2 warm-up tokens", PlanFields(depths = "1"))
        refused("depth 505 and 8 measured steps do not fit a cache of 512", PlanFields(depths = "505"))
        refused("do not fit", PlanFields(depths = "2147483647"))
        refused("a depth is no whole number: x", PlanFields(depths = "10 x"))
        refused("depths are whole numbers", PlanFields(depths = ", ,"))
        refused("at least 1", PlanFields(rounds = "0"))
        refused("at least 1", PlanFields(steps = "0"))
        refused("at least 1", PlanFields(prompt = "0"))
        refused("threads are between 1 and 256, found 0", PlanFields(threads = "0"))
        refused("rest between rounds is between 0 and 3,600", PlanFields(coolDown = "-1"))
        refused("rest between rounds is no number", PlanFields(coolDown = "Infinity"))
        refused("number of rounds is between 0", PlanFields(rounds = "-3"))
    }
}
