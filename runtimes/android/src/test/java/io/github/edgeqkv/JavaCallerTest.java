package io.github.edgeqkv;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The interface as Java sees it. */
class JavaCallerTest {
    private static final File FOLDER = new File(System.getProperty("edgeqkv.data"), "q-mqa");

    private static OpenOptions options() {
        return new OpenOptions.Builder()
                .runtime("onnx")
                .kernel("fused")
                .threads(1)
                .unchecked(false)
                .onnxRuntimeLibrary(new File(System.getProperty("edgeqkv.onnxruntime")))
                .execuTorchLibrary(null)
                .build();
    }

    @Test
    void generates() throws EdgeQKVException {
        assertTrue(EdgeQKV.getVersion().matches("\\d+\\.\\d+\\.\\d+"));
        assertTrue(EdgeQKV.memory().getRss() > 0);
        try (Bundle bundle = EdgeQKV.open(FOLDER, options());
                Session session = bundle.newSession()) {
            assertEquals("Q-MQA", bundle.getInfo().getVariant());
            assertEquals(List.of(0L), bundle.getInfo().getEndTokens());
            StringBuilder story = new StringBuilder();
            GenerateOptions greedy = new GenerateOptions.Builder().maxTokens(20).topK(0).endTokens(0L, 1L).build();
            StopReason why = session.generate(bundle.encode("Once upon a time"), greedy, token -> {
                story.append(token.getText());
                return token.getId() != Token.NONE;
            });
            assertEquals(StopReason.LIMIT, why);
            assertTrue(story.length() > 20, story.toString());
            long[] held = session.tokens();
            assertEquals(session.getDepth(), held.length);
            try (Session fork = session.fork()) {
                fork.rewind(3);
                fork.feed(held);
                assertArrayEquals(held, fork.tokens());
                assertEquals(bundle.getInfo().getVocabSize(), fork.logits().length);
            }
            session.generate(new long[0], GenerateOptions.DEFAULT, token -> false);
        }
    }

    @Test
    void catches() {
        EdgeQKVException error = assertThrows(EdgeQKVException.class, () -> EdgeQKV.open(new File("absent")));
        assertEquals(EdgeQKVException.Code.BAD_INPUT, error.getCode());
        assertTrue(error.getMessage().contains("absent"), error.getMessage());
        try (Bundle bundle = EdgeQKV.open(FOLDER, options());
                Session session = bundle.newSession()) {
            session.step(-1);
            throw new AssertionError();
        } catch (EdgeQKVException refused) {
            assertEquals(EdgeQKVException.Code.BAD_INPUT, refused.getCode());
        }
        assertThrows(NullPointerException.class, () -> EdgeQKV.open(null));
    }
}
