package io.github.edgeqkv.demo

import org.json.JSONException
import org.json.JSONObject
import java.io.BufferedReader
import java.io.IOException
import java.io.InputStream
import java.io.OutputStream

/** A process of its own that holds one bundle and answers the worker's protocol (edgeqkv/bench/protocol.py). */
interface MeasuredProcess {
    /** The answer to one request; refused with a sentence where there is none. */
    fun ask(what: String, vararg arguments: Pair<String, Any>): JSONObject

    /** Ends it at once, from any thread; an [ask] that waits is refused. */
    fun kill()
}

/** Starts the process [number], which nobody else uses. */
fun interface Processes {
    fun start(number: Int): MeasuredProcess
}

/** One that is reached by two streams, one JSON object a line each way. [end] kills it, and wakes who reads from it. */
class LineProcess(input: InputStream, private val output: OutputStream, private val end: () -> Unit) : MeasuredProcess {
    private val lines: BufferedReader = input.bufferedReader()

    @Synchronized
    override fun ask(what: String, vararg arguments: Pair<String, Any>): JSONObject {
        val request = JSONObject().put("do", what)
        arguments.forEach { (name, value) -> request.put(name, value) }
        val line = try {
            output.write((request.toString() + "\n").toByteArray())
            output.flush()
            lines.readLine()
        } catch (error: IOException) {
            null
        } ?: throw Refused("the measured process ended during '$what', probably for want of memory")
        val answer = try {
            JSONObject(line)
        } catch (error: JSONException) {
            throw Refused("the measured process answered '$what' with ${line.take(80)}", error)
        }
        if (answer.has("error")) throw Refused(answer.getString("error"))
        return answer
    }

    override fun kill() {
        end()
        synchronized(this) { // not while another thread reads: the descriptor's number may be given to another file
            listOf(output, lines).forEach {
                try {
                    it.close()
                } catch (error: IOException) {
                    // the other side has ended it
                }
            }
        }
    }
}
