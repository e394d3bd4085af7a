package io.github.edgeqkv.demo

import kotlin.math.ceil
import kotlin.math.floor
import kotlin.math.log10
import kotlin.math.pow

/** What is drawn, in order, in pixels from the top left; colours are roles that a light and a dark screen fill differently. */
sealed class Shape {
    data class Box(val left: Float, val top: Float, val right: Float, val bottom: Float, val colour: Colour) : Shape()

    data class Line(val points: List<Pair<Float, Float>>, val colour: Colour, val width: Float) : Shape()

    /** A filled outline, faint. */
    data class Band(val points: List<Pair<Float, Float>>, val colour: Colour) : Shape()

    data class Dot(val x: Float, val y: Float, val radius: Float, val colour: Colour) : Shape()

    /** [x] is the text's left, middle or right by [anchor]; [baseline] is where it stands. */
    data class Text(
        val text: String,
        val x: Float,
        val baseline: Float,
        val colour: Colour,
        val anchor: Anchor = Anchor.LEFT,
        val bold: Boolean = false,
    ) : Shape()
}

enum class Anchor { LEFT, MIDDLE, RIGHT }

sealed class Colour {
    object Ink : Colour()

    object Quiet : Colour()

    object Grid : Colour()

    /** The report's, 0 to 7. */
    data class Series(val number: Int) : Colour()
}

class Drawing(val width: Float, val height: Float, val shapes: List<Shape>)

/** How wide and high text comes out; [line] is the height of one, [dp] a density-independent pixel. */
class Measure(val line: Float, val dp: Float, val width: (text: String, bold: Boolean) -> Float)

/** A plot of the results, laid out for any width and size of text. */
fun interface Plot {
    fun draw(width: Float, measure: Measure): Drawing
}

private const val SERIES = 7

/** Peak memory of each model, stacked by weights, cache and rest. */
class MemoryPlot(results: List<Measured>) : Plot {
    private val bars = results.filter { it.peak != null }.map { Bar(it.name, listOf(it.weights!!, it.cache!!, it.rest!!), mib(it.peak)) }

    override fun draw(width: Float, measure: Measure): Drawing = Canvas(width, measure).run {
        title("Peak memory, MiB")
        legend(listOf("weights", "cache", "the rest").mapIndexed { i, part -> part to i })
        bars(bars)
        drawing()
    }
}

/** What each model's cache takes when it is full: all that a long text adds to the rest. */
class CachePlot(results: List<Measured>) : Plot {
    private val bars = results.map { Bar(it.name, listOf(0, it.cacheBytes), mib(it.cacheBytes, 2)) }

    override fun draw(width: Float, measure: Measure): Drawing = Canvas(width, measure).run {
        title("Full cache, MiB")
        bars(bars)
        drawing()
    }
}

/** Sizes that are stacked in the colours of the series, and their sum in words. */
private class Bar(val name: String, val parts: List<Long>, val sum: String)

/** Median time of a token against depth, with the middle half of the samples. */
class DecodePlot(results: List<Measured>) : Plot {
    private val shown = results.filter { it.decode.isNotEmpty() }

    override fun draw(width: Float, measure: Measure): Drawing = Canvas(width, measure).run {
        title("Decoding, ms a token: median, middle half")
        legend(shown.mapIndexed { i, one -> one.name to i % SERIES })
        val highest = shown.flatMap { one -> one.decode.map { maxOf(it.high, it.p50) } }.maxOrNull() ?: 1.0
        val deepest = shown.flatMap { one -> one.decode.map { it.depth } }.maxOrNull() ?: 1
        val steps = ticks(highest)
        val digits = maxOf(0, -floor(log10(steps[1])).toInt())
        val left = steps.maxOf { measure.width(fixed(it, digits), false) } + gap
        // The last number below the axis stands with its middle at the right end.
        val right = width - measure.width(count(deepest), false) / 2
        val top = y + measure.line
        val bottom = top + maxOf(160 * measure.dp, 6 * measure.line)
        fun at(depth: Int) = left + (right - left) * depth / deepest
        fun at(ms: Double) = bottom - (bottom - top) * (ms / steps.last()).toFloat()
        for (step in steps) {
            add(Shape.Line(listOf(left to at(step), right to at(step)), Colour.Grid, measure.dp))
            add(Shape.Text(fixed(step, digits), left - gap, at(step) + 0.35f * measure.line, Colour.Quiet, Anchor.RIGHT))
        }
        var free = Float.NEGATIVE_INFINITY // numbers that would touch their neighbour are left out
        for (depth in (shown.flatMap { one -> one.decode.map { it.depth } } + 0).distinct().sorted()) {
            val half = measure.width(count(depth), false) / 2
            if (at(depth) - half < free && depth != deepest) continue
            if (depth == deepest && at(depth) - half < free) shapes.removeAt(shapes.lastIndex)
            add(Shape.Text(count(depth), at(depth), bottom + 1.5f * measure.line, Colour.Quiet, Anchor.MIDDLE))
            free = at(depth) + half + gap
        }
        shown.forEachIndexed { i, one ->
            val colour = Colour.Series(i % SERIES)
            val band = one.decode.map { at(it.depth) to at(it.low) } + one.decode.reversed().map { at(it.depth) to at(it.high) }
            if (one.decode.size > 1) add(Shape.Band(band, colour))
            add(Shape.Line(one.decode.map { at(it.depth) to at(it.p50) }, colour, 2 * measure.dp))
            one.decode.forEach { add(Shape.Dot(at(it.depth), at(it.p50), 4 * measure.dp, colour)) }
        }
        y = bottom + 1.8f * measure.line
        text("positions in the cache", Colour.Quiet)
        drawing()
    }

    /** From 0 to at least [highest], in three to six round steps. */
    private fun ticks(highest: Double): List<Double> {
        val power = 10.0.pow(floor(log10(highest)))
        val step = listOf(0.2, 0.5, 1.0, 2.0).map { it * power }.first { highest / it <= 5 }
        return List(ceil(highest / step).toInt() + 1) { it * step }
    }
}

/** Shapes from the top downwards. */
private class Canvas(private val width: Float, private val measure: Measure) {
    val shapes = mutableListOf<Shape>()
    val gap = 6 * measure.dp
    var y = 0f

    fun add(shape: Shape) {
        shapes += shape
    }

    fun title(title: String) {
        wrapped(title, true).forEach { line(it, Colour.Ink, true) }
        y += gap
    }

    fun text(text: String, colour: Colour = Colour.Ink) = wrapped(text, false).forEach { line(it, colour, false) }

    /** Names with their colours, as many in a row as fit. */
    fun legend(entries: List<Pair<String, Int>>) {
        var x = 0f
        for ((name, series) in entries) {
            val needed = measure.line + gap + measure.width(name, false) + 2 * gap
            if (x > 0 && x + needed > width) {
                x = 0f
                y += 1.3f * measure.line
            }
            add(Shape.Box(x, y + 0.15f * measure.line, x + 0.7f * measure.line, y + 0.85f * measure.line, Colour.Series(series)))
            add(Shape.Text(shortened(name, width - measure.line), x + measure.line, y + 0.8f * measure.line, Colour.Ink))
            x += needed
        }
        y += 1.6f * measure.line
    }

    /** Each with its name above it and its sum behind it. */
    fun bars(bars: List<Bar>) {
        val most = bars.maxOfOrNull { it.parts.sum() }?.coerceAtLeast(1) ?: 1
        val room = (width - (bars.maxOfOrNull { measure.width(it.sum, false) } ?: 0f) - 2 * gap).coerceAtLeast(0f)
        for (bar in bars) {
            text(bar.name)
            var left = 0f
            bar.parts.forEachIndexed { i, part ->
                val right = left + room * (part.toFloat() / most)
                add(Shape.Box(left, y, right, y + measure.line, Colour.Series(i)))
                left = right
            }
            add(Shape.Text(bar.sum, left + gap, y + 0.8f * measure.line, Colour.Ink))
            y += 1.5f * measure.line
        }
    }

    fun drawing() = Drawing(width, y + gap, shapes)

    private fun line(text: String, colour: Colour, bold: Boolean) {
        add(Shape.Text(text, 0f, y + 0.8f * measure.line, colour, bold = bold))
        y += 1.2f * measure.line
    }

    private fun wrapped(text: String, bold: Boolean): List<String> {
        val lines = mutableListOf("")
        for (word in text.split(" ")) {
            val longer = if (lines.last().isEmpty()) word else "${lines.last()} $word"
            if (lines.last().isEmpty() || measure.width(longer, bold) <= width) lines[lines.lastIndex] = longer else lines += word
        }
        return lines
    }

    private fun shortened(text: String, room: Float): String =
        if (measure.width(text, false) <= room) text
        else text.indices.reversed().map { text.take(it) + "…" }.firstOrNull { measure.width(it, false) <= room } ?: "…"
}
