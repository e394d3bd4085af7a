import CryptoKit
import Foundation

/// What a session needs of a bundle's `edgeqkv.json`, the contract that `edgeqkv export` writes. Formats 3 and 4 are read, both
/// into the form of the newer one; a bundle of format 3 has no end tokens.
public struct Manifest: Decodable, Equatable, Sendable {
    public struct Model: Decodable, Equatable, Sendable {
        public struct Config: Decodable, Equatable, Sendable {
            public let vocabSize: Int
            public let tokenCount: Int

            enum CodingKeys: String, CodingKey {
                case vocabSize = "vocab_size"
                case tokenCount = "token_count"
            }
        }

        public let variant: String
        public let config: Config
    }

    public struct File: Decodable, Equatable, Sendable {
        public let file: String
        public let sha256: String
    }

    /// `tokenizer` is nil where the model is driven by ids; one of `endTokens` ends a generation.
    public struct TextEntry: Decodable, Equatable, Sendable {
        public let tokenizer: File?
        public let endTokens: [Int]

        enum CodingKeys: String, CodingKey {
            case tokenizer
            case endTokens = "end_tokens"
        }
    }

    /// One array that is kept between steps; `dtype` is numpy's name.
    public struct Buffer: Decodable, Equatable, Sendable {
        public let name: String
        public let dtype: String
        public let shape: [Int]

        /// nil for a dtype that no cache has, or a size beyond an Int.
        var bytes: Int? {
            guard let size = ["float32": 4, "float16": 2, "int8": 1][dtype] else { return nil }
            var product = size
            for dimension in shape {
                let (bytes, overflow) = product.multipliedReportingOverflow(by: dimension)
                guard dimension > 0, !overflow else { return nil }
                product = bytes
            }
            return product
        }
    }

    public struct Cache: Decodable, Equatable, Sendable {
        public let buffers: [Buffer]
        public let bytes: Int

        enum CodingKeys: String, CodingKey {
            case buffers, bytes, names, dtype, shape
        }

        /// In format 3 all tensors have one shape; scales are beside a cache that Core ML cannot hold, and are left out.
        public init(from decoder: any Decoder) throws {
            let container = try decoder.container(keyedBy: CodingKeys.self)
            bytes = try container.decode(Int.self, forKey: .bytes)
            if let found = try container.decodeIfPresent([Buffer].self, forKey: .buffers) {
                buffers = found
                return
            }
            let dtype = try container.decode(String.self, forKey: .dtype)
            let shape = try container.decode([Int].self, forKey: .shape)
            let name = ["fp32": "float32", "fp16": "float16"][dtype] ?? dtype
            buffers = try container.decode([String].self, forKey: .names).map { Buffer(name: $0, dtype: name, shape: shape) }
        }
    }

    public struct EntryPoint: Decodable, Equatable, Sendable {
        public let name: String
        /// From a state of the Core ML package to the cache tensor that it holds.
        public let states: [String: String]
    }

    public struct Artifact: Decodable, Equatable, Sendable {
        public let runtime: String
        public let cache: Cache
        /// Paths in the bundle, each with its sha256.
        public let files: [String: String]
        public let prefillChunk: Int
        public let entryPoints: [EntryPoint]

        enum CodingKeys: String, CodingKey {
            case runtime, cache, files
            case prefillChunk = "prefill_chunk"
            case entryPoints = "entry_points"
        }
    }

    public static let fileName = "edgeqkv.json"
    static let formats = 3...4
    static let package = "coreml/model.mlpackage"
    static let tokenizer = "tokenizer.json"

    public let format: Int
    public let model: Model
    public let text: TextEntry
    public let capacity: Int
    public let artifacts: [Artifact]

    enum CodingKeys: String, CodingKey {
        case format, model, text, capacity, artifacts
    }

    public init(from decoder: any Decoder) throws {
        struct OlderModel: Decodable {
            let tokenizer_sha256: String?
        }

        let container = try decoder.container(keyedBy: CodingKeys.self)
        format = try container.decode(Int.self, forKey: .format)
        model = try container.decode(Model.self, forKey: .model)
        capacity = try container.decode(Int.self, forKey: .capacity)
        artifacts = try container.decode([Artifact].self, forKey: .artifacts)
        if format == 3 {
            let digest = try container.decode(OlderModel.self, forKey: .model).tokenizer_sha256
            text = TextEntry(tokenizer: digest.map { File(file: Manifest.tokenizer, sha256: $0) }, endTokens: [])
        } else {
            text = try container.decode(TextEntry.self, forKey: .text)
        }
    }

    /// Reads and checks the manifest of the bundle in `folder`.
    public init(bundle folder: URL) throws {
        let file = folder.appending(path: Manifest.fileName)
        guard let data = try? Data(contentsOf: file) else {
            throw EdgeQKVError("\(folder.path) is not a bundle: it has no \(Manifest.fileName); edgeqkv export writes one")
        }
        try self.init(json: data, name: file.path)
    }

    init(json: Data, name: String) throws {
        struct Version: Decodable { let format: Int }
        let decoder = JSONDecoder()
        guard let version = try? decoder.decode(Version.self, from: json) else {
            throw EdgeQKVError("\(name) is not a manifest of edgeqkv; export the bundle again")
        }
        guard Manifest.formats.contains(version.format) else {
            throw EdgeQKVError("\(name) has format \(version.format), this package reads 3 and 4: update or export again")
        }
        do {
            self = try decoder.decode(Manifest.self, from: json)
        } catch {
            throw EdgeQKVError("\(name) cannot be read (\(error)); export the bundle again")
        }
        try check(name: name)
    }

    /// The artifact for Core ML, which ``init(bundle:)`` made sure of.
    public var coreML: Artifact {
        artifacts.first { $0.runtime == "coreml" }!
    }

    private func check(name: String) throws {
        guard let artifact = artifacts.first(where: { $0.runtime == "coreml" }) else {
            throw EdgeQKVError("\(name) holds nothing for Core ML; export it with --target coreml")
        }
        guard model.config.tokenCount >= 1, model.config.tokenCount <= model.config.vocabSize, capacity >= 1,
            (1...capacity).contains(artifact.prefillChunk)
        else {
            throw EdgeQKVError("\(name) has a prefill chunk, capacity or token count that cannot be; export it again")
        }
        guard text.endTokens.allSatisfy({ (0..<model.config.tokenCount).contains($0) }) else {
            throw EdgeQKVError("\(name) has an end token that is none of the model's; export it again")
        }
        try check(artifact, name: name)
        guard (text.tokenizer?.file ?? Manifest.tokenizer) == Manifest.tokenizer,
            artifact.files.keys.allSatisfy({ !$0.hasPrefix("/") && !$0.split(separator: "/").contains("..") })
        else {
            throw EdgeQKVError("\(name) names files outside the bundle; export it again")
        }
    }

    /// The cache is what the states hold: fp16, with `capacity` positions.
    private func check(_ artifact: Artifact, name: String) throws {
        let cache = artifact.cache
        let names = cache.buffers.map(\.name)
        let functions = Dictionary(artifact.entryPoints.map { ($0.name, $0.states) }, uniquingKeysWith: { first, _ in first })
        for function in ["prefill", "decode"] {
            guard let states = functions[function], states.values.sorted() == names.sorted(), Set(names).count == names.count else {
                throw EdgeQKVError("\(name): the function \(function) is missing or does not hold the cache; export it again")
            }
        }
        var bytes = 0
        for buffer in cache.buffers {
            guard buffer.dtype == "float16", buffer.shape.count == 4, buffer.shape[2] == capacity, let more = buffer.bytes,
                more <= cache.bytes - bytes
            else {
                throw EdgeQKVError("\(name): \(buffer.name) is no cache of this model; export it again")
            }
            bytes += more
        }
        guard bytes == cache.bytes else {
            throw EdgeQKVError("\(name): the cache does not have the size that it says; export it again")
        }
    }

    /// Compares every file of the Core ML package, and the tokenizer, with its sha256 in the manifest.
    public func checkFiles(bundle folder: URL) throws {
        var expected = coreML.files
        expected[Manifest.tokenizer] = text.tokenizer?.sha256
        let inside = folder.resolvingSymlinksInPath().path + "/"
        for (name, digest) in expected.sorted(by: { $0.key < $1.key }) {
            let file = folder.appending(path: name)
            guard file.resolvingSymlinksInPath().path.hasPrefix(inside) else {
                throw EdgeQKVError("\(file.path) is a link that leads out of the bundle; copy the file into it")
            }
            guard let found = try? sha256(of: file) else {
                throw EdgeQKVError("\(folder.path): the file \(name) is missing; copy or export the bundle again")
            }
            guard found == digest else {
                throw EdgeQKVError("\(name) is not the file that was exported (its sha256 differs); copy or export it again")
            }
        }
    }
}

/// Of a file of any size, a MiB at a time.
func sha256(of file: URL) throws -> String {
    let handle = try FileHandle(forReadingFrom: file)
    defer { try? handle.close() }
    var hash = SHA256()
    while let data = try handle.read(upToCount: 1 << 20), !data.isEmpty {
        hash.update(data: data)
    }
    return hash.finalize().map { String(format: "%02x", $0) }.joined()
}
