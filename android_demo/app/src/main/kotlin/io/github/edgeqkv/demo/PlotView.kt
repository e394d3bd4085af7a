package io.github.edgeqkv.demo

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Path
import android.util.AttributeSet
import android.util.TypedValue
import android.view.View

/** Draws a [Plot] as wide as there is room and as high as it needs, with the text as large as the user has it. */
class PlotView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val painter = PlotPainter(context)
    private var plot: Plot? = null
    private var drawing: Drawing? = null

    /** [description] says the same in words, to who does not see it. */
    fun show(plot: Plot, description: String) {
        this.plot = plot
        contentDescription = description
        requestLayout()
        invalidate()
    }

    override fun onMeasure(widthSpec: Int, heightSpec: Int) {
        val width = MeasureSpec.getSize(widthSpec)
        val room = (width - paddingLeft - paddingRight).coerceAtLeast(1)
        drawing = plot?.draw(room.toFloat(), painter.measure)
        setMeasuredDimension(width, (drawing?.height ?: 0f).toInt() + paddingTop + paddingBottom)
    }

    override fun onDraw(canvas: Canvas) {
        canvas.translate(paddingLeft.toFloat(), paddingTop.toFloat())
        drawing?.let { painter.paint(canvas, it) }
    }
}

/** Puts shapes on a canvas in the colours of the screen, light or dark. */
class PlotPainter(private val context: Context) {
    private val metrics = context.resources.displayMetrics
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        textSize = TypedValue.applyDimension(TypedValue.COMPLEX_UNIT_SP, 13f, metrics)
    }
    private val series = SERIES.map(context::getColor)
    private val path = Path()

    val measure = Measure(paint.textSize * 1.15f, metrics.density) { text, bold ->
        paint.isFakeBoldText = bold
        paint.measureText(text)
    }

    fun paint(canvas: Canvas, drawing: Drawing) = drawing.shapes.forEach { paint(canvas, it) }

    /** [plots] below each other, as they are on the screen. */
    fun picture(plots: List<Plot>): Bitmap {
        val margin = 16 * metrics.density
        val width = WIDTH_DP * metrics.density
        val drawings = plots.map { it.draw(width, measure) }
        val height = drawings.fold(margin) { sum, drawing -> sum + drawing.height + margin }
        val bitmap = Bitmap.createBitmap((width + 2 * margin).toInt(), height.toInt(), Bitmap.Config.ARGB_8888)
        val canvas = Canvas(bitmap)
        canvas.drawColor(context.getColor(R.color.paper))
        canvas.translate(margin, margin)
        for (drawing in drawings) {
            paint(canvas, drawing)
            canvas.translate(0f, drawing.height + margin)
        }
        return bitmap
    }

    private fun paint(canvas: Canvas, shape: Shape) {
        when (shape) {
            is Shape.Box -> {
                fill(shape.colour)
                canvas.drawRect(shape.left, shape.top, shape.right, shape.bottom, paint)
            }
            is Shape.Dot -> {
                fill(shape.colour)
                canvas.drawCircle(shape.x, shape.y, shape.radius, paint)
            }
            is Shape.Band -> {
                fill(shape.colour)
                paint.alpha = 40
                canvas.drawPath(pathOf(shape.points).apply { close() }, paint)
            }
            is Shape.Line -> {
                fill(shape.colour)
                paint.style = Paint.Style.STROKE
                paint.strokeWidth = shape.width
                canvas.drawPath(pathOf(shape.points), paint)
            }
            is Shape.Text -> {
                fill(shape.colour)
                paint.isFakeBoldText = shape.bold
                paint.textAlign = when (shape.anchor) {
                    Anchor.LEFT -> Paint.Align.LEFT
                    Anchor.MIDDLE -> Paint.Align.CENTER
                    Anchor.RIGHT -> Paint.Align.RIGHT
                }
                canvas.drawText(shape.text, shape.x, shape.baseline, paint)
            }
        }
    }

    private fun fill(colour: Colour) {
        paint.style = Paint.Style.FILL
        paint.color = when (colour) {
            Colour.Ink -> context.getColor(R.color.ink)
            Colour.Quiet -> context.getColor(R.color.quiet)
            Colour.Grid -> context.getColor(R.color.grid)
            is Colour.Series -> series[colour.number]
        }
    }

    private fun pathOf(points: List<Pair<Float, Float>>): Path {
        path.rewind()
        points.forEachIndexed { i, (x, y) -> if (i == 0) path.moveTo(x, y) else path.lineTo(x, y) }
        return path
    }

    private companion object {
        const val WIDTH_DP = 360
        val SERIES = listOf(
            R.color.series_0,
            R.color.series_1,
            R.color.series_2,
            R.color.series_3,
            R.color.series_4,
            R.color.series_5,
            R.color.series_6,
        )
    }
}
