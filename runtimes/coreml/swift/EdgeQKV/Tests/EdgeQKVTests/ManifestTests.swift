import Foundation
import Testing

@testable import EdgeQKV

/// What `edgeqkv export --target coreml` writes, cut down to what is read here, with one change.
func manifestJSON(replacing old: String = "", with new: String = "") -> Data {
    let text = """
        {"format": 4, "edgeqkv": "0.2.0", "capacity": 32,
         "model": {"variant": "MLA", "config": {"vocab_size": 8, "token_count": 6, "attention": {"kind": "latent"}}},
         "text": {"tokenizer": null, "end_tokens": [], "chat_template": null, "special_tokens": {}},
         "artifacts": [
          {"runtime": "onnx", "cache": {"buffers": [{"name": "cache.0.k", "dtype": "int8", "shape": [1, 1, 32, 32]}], "bytes": 1024},
           "files": {"onnx/model.onnx": "0"}, "prefill_chunk": 64, "entry_points": [{"name": "main", "states": {}}]},
          {"runtime": "coreml",
           "cache": {"buffers": [{"name": "cache.0.k", "dtype": "float16", "shape": [1, 1, 32, 96]}], "bytes": 6144},
           "files": {"coreml/model.mlpackage/Manifest.json": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
           "prefill_chunk": 4,
           "entry_points": [{"name": "prefill", "states": {"cache_0_k": "cache.0.k"}},
                            {"name": "decode", "states": {"cache_0_k": "cache.0.k"}}]}]}
        """
    return Data((old.isEmpty ? text : text.replacingOccurrences(of: old, with: new)).utf8)
}

@Test func readsWhatExportWrites() throws {
    let json = manifestJSON(replacing: "\"end_tokens\": []", with: "\"end_tokens\": [2, 5]")
    let manifest = try Manifest(json: json, name: "m")
    #expect(manifest.capacity == 32)
    #expect(manifest.model.config.tokenCount == 6)
    #expect(manifest.text.endTokens == [2, 5])
    #expect(manifest.coreML.prefillChunk == 4)
    #expect(manifest.coreML.cache.bytes == 6144)
}

@Test func readsFormat3() throws {
    let json = """
        {"format": 3, "edgeqkv": "0.1.0", "capacity": 32,
         "model": {"variant": "Q-MQA", "config": {"vocab_size": 8, "token_count": 6}, "tokenizer_sha256": "0a"},
         "artifacts": [
          {"runtime": "coreml", "cache": {"dtype": "fp16", "names": ["cache.0.k"], "shape": [1, 1, 32, 32], "bytes": 2048},
           "files": {"coreml/model.mlpackage/Manifest.json": "0"}, "prefill_chunk": 4,
           "entry_points": [{"name": "prefill", "states": {"cache_0_k": "cache.0.k"}},
                            {"name": "decode", "states": {"cache_0_k": "cache.0.k"}}]}]}
        """
    let manifest = try Manifest(json: Data(json.utf8), name: "m")
    #expect(manifest.text == .init(tokenizer: .init(file: "tokenizer.json", sha256: "0a"), endTokens: []))
    #expect(manifest.coreML.cache.buffers == [.init(name: "cache.0.k", dtype: "float16", shape: [1, 1, 32, 32])])
}

@Test(arguments: [
    ("\"format\": 4", "\"format\": 5", "has format 5, this package reads 3 and 4"),
    ("\"format\": 4", "\"format\": \"4\"", "is not a manifest"),
    ("\"runtime\": \"coreml\"", "\"runtime\": \"other\"", "holds nothing for Core ML"),
    ("{\"name\": \"prefill\"", "{\"name\": \"main\"", "the function prefill is missing"),
    ("{\"cache_0_k\": \"cache.0.k\"}", "{}", "does not hold the cache"),
    ("\"prefill_chunk\": 4", "\"prefill_chunk\": 0", "cannot be"),
    ("\"prefill_chunk\": 4", "\"prefill_chunk\": 33", "cannot be"),
    ("\"token_count\": 6", "\"token_count\": 9", "cannot be"),
    ("\"end_tokens\": []", "\"end_tokens\": [6]", "an end token that is none of the model's"),
    ("[1, 1, 32, 96]", "[1, 1, 64, 96]", "is no cache of this model"),
    ("[1, 1, 32, 96]", "[9223372036854775807, 2, 32, 96]", "is no cache of this model"),
    ("\"float16\"", "\"int8\"", "is no cache of this model"),
    ("\"bytes\": 6144", "\"bytes\": 6145", "does not have the size that it says"),
    ("coreml/model.mlpackage/Manifest.json", "../Manifest.json", "outside the bundle"),
    ("\"tokenizer\": null", "\"tokenizer\": {\"file\": \"../t\", \"sha256\": \"0\"}", "outside the bundle"),
    ("\"capacity\": 32,", "", "cannot be read"),
])
func refusesWhatCannotBeTrusted(old: String, new: String, reason: String) {
    let error = #expect(throws: EdgeQKVError.self) {
        try Manifest(json: manifestJSON(replacing: old, with: new), name: "m")
    }
    #expect(error?.errorDescription?.contains(reason) == true)
}

@Test func comparesFilesWithTheirHashes() throws {
    let folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
    let file = folder.appending(path: "coreml/model.mlpackage/Manifest.json")
    try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let manifest = try Manifest(json: manifestJSON(), name: "m")
    #expect(throws: EdgeQKVError.self) { try manifest.checkFiles(bundle: folder) }
    try Data().write(to: file)
    try manifest.checkFiles(bundle: folder)
    try Data("x".utf8).write(to: file)
    #expect(throws: EdgeQKVError.self) { try manifest.checkFiles(bundle: folder) }
    try FileManager.default.removeItem(at: file)
    try Data().write(to: folder.appendingPathExtension("outside"))
    defer { try? FileManager.default.removeItem(at: folder.appendingPathExtension("outside")) }
    try FileManager.default.createSymbolicLink(at: file, withDestinationURL: folder.appendingPathExtension("outside"))
    #expect(throws: EdgeQKVError.self) { try manifest.checkFiles(bundle: folder) }
}
