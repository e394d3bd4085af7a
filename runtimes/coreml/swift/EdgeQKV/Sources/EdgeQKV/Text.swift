import Foundation
import Tokenizers

/// The bundle's tokenizer, by swift-transformers.
public struct Text: Sendable {
    private let tokenizer: any Tokenizer

    /// swift-transformers reads a folder with a tokenizer_config.json beside tokenizer.json, so one is made of the bundle's file.
    public init(bundle folder: URL) async throws {
        let source = folder.appending(path: "tokenizer.json")
        guard FileManager.default.fileExists(atPath: source.path) else {
            throw EdgeQKVError("\(folder.path) has no tokenizer, so it cannot take or write text; use token ids")
        }
        let scratch = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(at: scratch, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: scratch) }
        try FileManager.default.copyItem(at: source, to: scratch.appending(path: "tokenizer.json"))
        try Data(#"{"tokenizer_class": "GPT2Tokenizer"}"#.utf8).write(to: scratch.appending(path: "tokenizer_config.json"))
        tokenizer = try await AutoTokenizer.from(modelFolder: scratch)
    }

    public func encode(_ text: String) -> [Int] {
        tokenizer.encode(text: text, addSpecialTokens: false)
    }

    public func decode(_ ids: [Int]) -> String {
        tokenizer.decode(tokens: ids)
    }
}

/// Turns ids into text piece by piece: a character whose bytes are spread over tokens is held back until it is whole.
public struct TextStream {
    private let decode: ([Int]) -> String
    private var ids: [Int] = []
    private var written = ""

    public init(decode: @escaping ([Int]) -> String) {
        self.decode = decode
    }

    /// What the next id adds; empty while a character is incomplete.
    public mutating func add(_ id: Int) -> String {
        ids.append(id)
        let text = decode(ids)
        guard !text.hasSuffix("\u{FFFD}"), text.hasPrefix(written) else { return "" }
        defer { written = text }
        return String(text.dropFirst(written.count))
    }
}
