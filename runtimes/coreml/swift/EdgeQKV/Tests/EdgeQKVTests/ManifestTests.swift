import Foundation
import Testing

@testable import EdgeQKV

/// What `edgeqkv export --target coreml` writes, cut down to what is read here, with one change.
func manifestJSON(replacing old: String = "", with new: String = "") -> Data {
    let text = """
        {"format": 3, "edgeqkv": "0.1.0", "capacity": 32,
         "model": {"variant": "Q-MQA", "config": {"vocab_size": 8, "token_count": 6}, "tokenizer_sha256": null},
         "artifacts": [
          {"runtime": "onnx", "cache": {"names": ["cache.0.k"], "bytes": 4096}, "files": {"onnx/model.onnx": "0"},
           "prefill_chunk": 64, "entry_points": [{"name": "main", "states": {}}]},
          {"runtime": "coreml", "cache": {"names": ["cache.0.k"], "bytes": 2048},
           "files": {"coreml/model.mlpackage/Manifest.json": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
           "prefill_chunk": 4,
           "entry_points": [{"name": "prefill", "states": {"cache_0_k": "cache.0.k"}},
                            {"name": "decode", "states": {"cache_0_k": "cache.0.k"}}]}]}
        """
    return Data((old.isEmpty ? text : text.replacingOccurrences(of: old, with: new)).utf8)
}

@Test func readsWhatExportWrites() throws {
    let manifest = try Manifest(json: manifestJSON(), name: "m")
    #expect(manifest.capacity == 32)
    #expect(manifest.model.config.tokenCount == 6)
    #expect(manifest.coreML.prefillChunk == 4)
    #expect(manifest.coreML.cache.bytes == 2048)
}

@Test(arguments: [
    ("\"format\": 2", "\"format\": 3", "has format 3, this package reads 2"),
    ("\"format\": 2", "\"format\": \"2\"", "is not a manifest"),
    ("\"runtime\": \"coreml\"", "\"runtime\": \"other\"", "holds nothing for Core ML"),
    ("{\"name\": \"prefill\"", "{\"name\": \"main\"", "the function prefill is missing"),
    ("{\"cache_0_k\": \"cache.0.k\"}", "{}", "does not hold the cache"),
    ("\"prefill_chunk\": 4", "\"prefill_chunk\": 0", "cannot be"),
    ("coreml/model.mlpackage/Manifest.json", "../Manifest.json", "outside the bundle"),
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
}
