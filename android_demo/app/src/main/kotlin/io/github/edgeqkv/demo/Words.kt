package io.github.edgeqkv.demo

import java.util.Locale

/** Numbers as edgeqkv's tables and reports write them, in every locale: they are compared with those. */
fun mib(bytes: Long, digits: Int = 1): String = String.format(Locale.ROOT, "%,.${digits}f", bytes / 1048576.0)

fun mib(bytes: Long?): String = if (bytes == null) NOT_MEASURED else mib(bytes, 1)

fun count(number: Int): String = String.format(Locale.ROOT, "%,d", number)

fun fixed(number: Double, digits: Int): String = String.format(Locale.ROOT, "%,.${digits}f", number)

/** Enough digits for a number of any size. */
fun rate(tokensPerSecond: Double): String = fixed(tokensPerSecond, if (tokensPerSecond < 10) 1 else 0)

const val NOT_MEASURED = "not measured"
