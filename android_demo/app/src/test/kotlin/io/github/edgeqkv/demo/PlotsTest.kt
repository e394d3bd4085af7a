package io.github.edgeqkv.demo

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import java.io.File

class PlotsTest {
    private val results by lazy {
        // Three real records; any will do, since a plot is about what it is given.
        val plan = Plan(listOf(20, 60, 62), threads = 1, prompt = 16, steps = 3, rounds = 2, coolDownSeconds = 0.0)
        val models = listOf("qkv", "q-kv", "q-mqa").map(TestData::model)
        Results(Comparison(models, plan, TestPhone(), { TestData.startProcess() }, "0.2.0") { _, _, _ -> }.measure().lines)
    }

    /** Text of [size] pixels, as wide as a plain font has it. */
    private fun measure(size: Float) = Measure(1.15f * size, 1f) { text, bold -> text.length * size * if (bold) 0.6f else 0.5f }

    private fun Measure.box(text: Shape.Text): List<Float> {
        val width = width(text.text, text.bold)
        val left = when (text.anchor) {
            Anchor.LEFT -> text.x
            Anchor.MIDDLE -> text.x - width / 2
            Anchor.RIGHT -> text.x - width
        }
        return listOf(left, text.baseline - 0.8f * line, left + width, text.baseline + 0.2f * line)
    }

    private fun plots() = listOf(MemoryPlot(results.measured), CachePlot(results.measured), DecodePlot(results.measured))

    @Test
    fun `all stays inside, and no text lies on another, also in large text`() {
        for (size in listOf(13f, 26f)) for (width in listOf(320f, 411f, 900f)) for (plot in plots()) {
            val measure = measure(size)
            val drawing = plot.draw(width, measure)
            val texts = drawing.shapes.filterIsInstance<Shape.Text>()
            val boxes = texts.map { measure.box(it) }
            for ((text, box) in texts zip boxes) {
                assertTrue(box[0] >= -0.5f && box[2] <= width + 0.5f, "$text at $width in $size")
                assertTrue(box[1] >= -0.5f && box[3] <= drawing.height + 0.5f, "$text")
            }
            for (i in boxes.indices) for (j in 0 until i) {
                val (a, b) = boxes[i] to boxes[j]
                val apart = a[0] >= b[2] || b[0] >= a[2] || a[1] >= b[3] - 0.5f || b[1] >= a[3] - 0.5f
                assertTrue(apart, "${texts[i]} and ${texts[j]} at $width in $size")
            }
            for (shape in drawing.shapes) {
                val points = when (shape) {
                    is Shape.Box -> listOf(shape.left to shape.top, shape.right to shape.bottom)
                    is Shape.Line -> shape.points
                    is Shape.Band -> shape.points
                    is Shape.Dot -> listOf(shape.x to shape.y)
                    is Shape.Text -> emptyList()
                }
                assertTrue(points.all { (x, y) -> x in 0f..width && y in 0f..drawing.height }, "$shape at $width in $size")
            }
        }
    }

    @Test
    fun `bars are as long as what they stand for`() {
        val drawing = MemoryPlot(results.measured).draw(400f, measure(13f))
        val bars = drawing.shapes.filterIsInstance<Shape.Box>().drop(3).chunked(3) // after the legend's
        assertEquals(3, bars.size)
        val unit = bars[0].last().right / results.measured[0].peak!!
        for ((one, parts) in results.measured zip bars) {
            assertEquals(listOf(0, 1, 2).map { Colour.Series(it) }, parts.map { it.colour })
            val lengths = parts.map { it.right - it.left }
            for ((length, bytes) in lengths zip listOf(one.weights, one.cache, one.rest)) assertEquals(bytes!! * unit, length, 0.01f)
        }
        val full = CachePlot(results.measured).draw(400f, measure(13f)).shapes.filterIsInstance<Shape.Box>().filter { it.right > it.left }
        for ((one, bar) in results.measured zip full) {
            assertEquals(full[0].right * one.cacheBytes / results.measured[0].cacheBytes, bar.right, 0.01f)
            assertEquals(Colour.Series(1), bar.colour)
        }
        val numbers = drawing.shapes.filterIsInstance<Shape.Text>().map { it.text }
        assertTrue(numbers.containsAll(results.measured.map { mib(it.peak) }), "$numbers")
    }

    @Test
    fun `lines rise with time and go right with depth`() {
        val drawing = DecodePlot(results.measured).draw(400f, measure(13f))
        val lines = drawing.shapes.filterIsInstance<Shape.Line>().filter { it.colour is Colour.Series }
        assertEquals(3, lines.size)
        val points = lines.flatMap { it.points } zip results.measured.flatMap { it.decode }
        for ((a, one) in points) for ((b, other) in points) {
            if (one.depth < other.depth) assertTrue(a.first < b.first)
            if (one.p50 > other.p50 * 1.001) assertTrue(a.second < b.second)
        }
        assertEquals(3, drawing.shapes.filterIsInstance<Shape.Band>().size)
    }

    @Test
    fun `nothing to show is no crash`() {
        plots() // measured once
        for (plot in listOf(MemoryPlot(emptyList()), CachePlot(emptyList()), DecodePlot(emptyList()))) {
            assertTrue(plot.draw(300f, measure(13f)).height > 0)
            assertTrue(plot.draw(1f, measure(26f)).height > 0)
        }
    }
}

class StructureTest {
    /** The screens; all else knows nothing of Android, so that these tests run it as it is. */
    private val screens = setOf(
        "AndroidPhone", "CompareScreen", "DemoApplication", "MainActivity", "MeasureActivity", "MeasureService", "ModelsScreen",
        "Newer", "PickedFiles", "PlotView", "Screen", "SharedFiles", "WriteScreen",
    )

    @Test
    fun `only the screens know Android`() {
        val using = TestData.sources.walk().filter { it.extension == "kt" }
            .filter { Regex("^import android\\.", RegexOption.MULTILINE).containsMatchIn(it.readText()) }
        assertEquals(screens, using.map(File::nameWithoutExtension).toSet())
    }
}
