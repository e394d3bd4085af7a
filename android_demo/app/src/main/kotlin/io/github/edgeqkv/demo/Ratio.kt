package io.github.edgeqkv.demo

import kotlin.math.exp
import kotlin.math.ln
import kotlin.math.pow
import kotlin.math.sqrt

/** Time of the baseline over that of another model, above 1 where that is faster, with its 99 % interval. */
class Ratio(val value: Double, val low: Double, val high: Double) {
    /** As `edgeqkv report` asks: the whole interval lies beyond 3 %. */
    val differs: Boolean get() = low > 1.03 || high < 1 / 1.03
}

/** The ratio that `edgeqkv report` finds in the same samples: edgeqkv/bench/ratio.py explains it. null where it finds none. */
fun speedRatio(base: List<Double>, other: List<Double>, rounds: Int): Ratio? {
    if (rounds < FEWEST || base.size % rounds != 0 || other.size % rounds != 0 || base.isEmpty() || other.isEmpty()) return null
    val pairs = base.chunked(base.size / rounds).zip(other.chunked(other.size / rounds))
    val logs = pairs.map { (theirs, ours) -> ln(median(theirs) / median(ours)) }.sorted()
    val cut = minOf((TRIMMED * rounds).toInt(), (rounds - FEWEST) / 2)
    val kept = logs.subList(cut, rounds - cut)
    val winsorised = List(cut) { kept.first() } + kept + List(cut) { kept.last() }
    val middle = winsorised.average()
    val squares = winsorised.sumOf { (it - middle) * (it - middle) }
    val half = largestT(kept.size) * sqrt(squares / (kept.size * (kept.size - 1.0)))
    val ratio = kept.average()
    return Ratio(exp(ratio), exp(ratio - half), exp(ratio + half))
}

const val FEWEST = 5 // rounds that can say anything
private const val TRIMMED = 0.1
private const val ALPHA = 0.01
private const val EFFECT_VARIANCE = 4.0

private fun largestT(count: Int): Double {
    val r = 1 / (1 + count * EFFECT_VARIANCE)
    val reached = (1 / (ALPHA * sqrt(r))).pow(2.0 / count)
    return sqrt((count - 1) * (reached - 1) / (1 - r * reached))
}
