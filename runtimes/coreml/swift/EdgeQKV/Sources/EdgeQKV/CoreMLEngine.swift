import CoreML
import Foundation

/// The two functions of a package over one state. A session serialises its calls, which Core ML asks of calls that share a state.
public final class CoreMLEngine: Engine, @unchecked Sendable {
    private let functions: [String: MLModel]
    private let state: MLState

    /// `compiled` is an .mlmodelc. Xcode makes one of a package that is part of an app; `MLModel.compileModel(at:)` makes one of a
    /// package that was downloaded, to be kept: it takes long.
    public init(compiled: URL, computeUnits: MLComputeUnits = .all) async throws {
        var functions: [String: MLModel] = [:]
        for name in ["prefill", "decode"] {
            let configuration = MLModelConfiguration()
            configuration.functionName = name
            configuration.computeUnits = computeUnits
            functions[name] = try await MLModel.load(contentsOf: compiled, configuration: configuration)
        }
        self.functions = functions
        state = functions["decode"]!.makeState()
    }

    public func logits(function: String, ids: [Int32], position: Int32) async throws -> [Float] {
        let input = try MLDictionaryFeatureProvider(dictionary: [
            "ids": MLMultiArray(MLShapedArray<Int32>(scalars: ids, shape: [1, ids.count])),
            "position": MLMultiArray(MLShapedArray<Int32>(scalars: [position], shape: [1])),
        ])
        let output = try await functions[function]!.prediction(from: input, using: state)
        guard let logits = output.featureValue(for: "logits")?.multiArrayValue else {
            throw EdgeQKVError("the Core ML function \(function) returned no logits; export the bundle again")
        }
        return MLShapedArray<Float>(logits).scalars
    }
}

extension Session {
    /// Opens a bundle: checks its manifest and files, compiles the package, and loads both functions.
    public static func open(bundle folder: URL, computeUnits: MLComputeUnits = .all) async throws -> Session {
        let manifest = try Manifest(bundle: folder)
        try manifest.checkFiles(bundle: folder)
        let compiled = try await MLModel.compileModel(at: folder.appending(path: Manifest.package))
        return Session(manifest: manifest, engine: try await CoreMLEngine(compiled: compiled, computeUnits: computeUnits))
    }
}
