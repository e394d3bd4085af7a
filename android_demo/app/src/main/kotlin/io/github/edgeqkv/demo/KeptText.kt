package io.github.edgeqkv.demo

import io.github.edgeqkv.Session
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject
import java.io.File
import java.io.IOException

/**
 * A text that was put away in [folder]: its tokens, what was shown of it, and the session that had read it, in the library's
 * file. It is replaced as a whole: the new session's file is complete before the description that names it takes the old
 * one's place.
 */
class KeptText(private val folder: File) {
    class Kept(val model: String, val text: String, val ids: List<Long>, val session: File)

    private val description = File(folder, "text.json")

    fun save(model: String, text: String, ids: List<Long>, session: Session) {
        folder.mkdirs()
        val old = load()?.session
        val file = File(folder, if (old?.name == NAMES[0]) NAMES[1] else NAMES[0])
        session.save(file)
        describe(model, text, ids, file)
        old?.delete()
    }

    /** The text alone, while its session is at work. The older session that lies here may hold the beginning of it, or nothing. */
    fun note(model: String, text: String, ids: List<Long>) {
        folder.mkdirs()
        describe(model, text, ids, load()?.session ?: File(folder, NAMES[0]))
    }

    private fun describe(model: String, text: String, ids: List<Long>, session: File) {
        val json = JSONObject().put("model", model).put("text", text).put("ids", JSONArray(ids)).put("session", session.name)
        val unfinished = File(folder, "text.json.unfinished")
        unfinished.outputStream().use { out ->
            out.write(json.toString().toByteArray())
            out.fd.sync()
        }
        if (!unfinished.renameTo(description)) throw Refused("the text cannot be put away")
    }

    /** null: there is none, or it cannot be read. */
    fun load(): Kept? = try {
        val json = JSONObject(description.readText())
        val ids = json.getJSONArray("ids")
        Kept(
            json.getString("model"),
            json.getString("text"),
            List(ids.length()) { ids.getLong(it) },
            File(folder, NAMES.single { it == json.getString("session") }),
        )
    } catch (error: IOException) {
        null
    } catch (error: JSONException) {
        null
    } catch (error: NoSuchElementException) {
        null
    }

    fun clear() {
        description.delete()
        NAMES.forEach { File(folder, it).delete() }
    }

    private companion object {
        val NAMES = listOf("a.session", "b.session")
    }
}
