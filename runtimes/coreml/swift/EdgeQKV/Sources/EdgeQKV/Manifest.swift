import CryptoKit
import Foundation

/// Every error that EdgeQKV throws on purpose: one sentence that says what is wrong, where, and what to do.
public struct EdgeQKVError: LocalizedError, Equatable, Sendable {
    public let errorDescription: String?

    public init(_ sentence: String) {
        errorDescription = sentence
    }
}

/// What a session needs of a bundle's `edgeqkv.json`, the contract that `edgeqkv export` writes.
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
        public let tokenizerSHA256: String?

        enum CodingKeys: String, CodingKey {
            case variant, config
            case tokenizerSHA256 = "tokenizer_sha256"
        }
    }

    public struct Cache: Decodable, Equatable, Sendable {
        public let names: [String]
        public let bytes: Int
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
    static let format = 3
    static let package = "coreml/model.mlpackage"

    public let format: Int
    public let model: Model
    public let capacity: Int
    public let artifacts: [Artifact]

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
        guard version.format == Manifest.format else {
            throw EdgeQKVError("\(name) has format \(version.format), this package reads \(Manifest.format): update or export again")
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
        let functions = Dictionary(artifact.entryPoints.map { ($0.name, $0.states) }, uniquingKeysWith: { first, _ in first })
        for function in ["prefill", "decode"] {
            guard let states = functions[function], Set(states.values) == Set(artifact.cache.names) else {
                throw EdgeQKVError("\(name): the function \(function) is missing or does not hold the cache; export it again")
            }
        }
        guard artifact.prefillChunk >= 1, capacity >= 1, (1...model.config.vocabSize).contains(model.config.tokenCount) else {
            throw EdgeQKVError("\(name) has a prefill chunk, capacity or token count that cannot be; export it again")
        }
        guard artifact.files.keys.allSatisfy({ !$0.hasPrefix("/") && !$0.split(separator: "/").contains("..") }) else {
            throw EdgeQKVError("\(name) names files outside the bundle; export it again")
        }
    }

    /// Compares every file of the Core ML package, and the tokenizer, with its sha256 in the manifest.
    public func checkFiles(bundle folder: URL) throws {
        var expected = coreML.files
        expected["tokenizer.json"] = model.tokenizerSHA256
        for (name, digest) in expected.sorted(by: { $0.key < $1.key }) {
            guard let found = try? sha256(of: folder.appending(path: name)) else {
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
