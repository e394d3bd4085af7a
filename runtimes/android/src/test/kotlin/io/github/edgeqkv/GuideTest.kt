package io.github.edgeqkv

import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import java.io.File

/** The functions of docs/guides/kotlin.md, as they stand there. */
class GuideTest {
    fun story(folder: File, options: OpenOptions = OpenOptions.DEFAULT): String {
        val text = StringBuilder()
        EdgeQKV.open(folder, options).use { bundle ->
            bundle.newSession().use { session ->
                val prompt = bundle.encode("Once upon a time")
                session.generate(prompt, GenerateOptions { maxTokens = 40 }) { token ->
                    text.append(token.text)
                    true // go on
                }
            }
        }
        return text.toString()
    }

    suspend fun stream(bundle: Bundle, session: Session, show: (String) -> Unit) {
        val prompt = bundle.encode("Once upon a time")
        session.tokenFlow(prompt, GenerateOptions { maxTokens = 40 }).collect { token -> show(token.text) }
    }

    fun putAside(bundle: Bundle, session: Session, file: File): Session {
        session.save(file)
        session.close()
        return bundle.newSession().apply { restore(file) }
    }

    private val q = File(TestData.folder, "q-mqa")

    @Test
    fun `a story, and the same as a stream`() {
        val wanted = story(q, TestData.options())
        assertTrue(wanted.length > 20, wanted)
        val text = StringBuilder()
        TestData.open("q-mqa").use { bundle ->
            bundle.newSession().use { session -> runBlocking { stream(bundle, session) { text.append(it) } } }
        }
        assertEquals(wanted, text.toString())
    }

    @Test
    fun `a conversation put aside`(@TempDir folder: File) {
        TestData.open("q-mqa").use { bundle ->
            val session = bundle.newSession()
            session.prefill(bundle.encode("Once upon a time"))
            val held = session.tokens()
            putAside(bundle, session, File(folder, "chat.session")).use { assertEquals(held.toList(), it.tokens().toList()) }
        }
    }
}
