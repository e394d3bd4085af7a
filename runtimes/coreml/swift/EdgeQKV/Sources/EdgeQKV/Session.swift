/// What computes: Core ML in an app, anything else in a test.
public protocol Engine: Sendable {
    /// Runs the function `prefill` or `decode`: writes the rows of `ids` at `position` of the cache; logits after the last id.
    func logits(function: String, ids: [Int32], position: Int32) async throws -> [Float]
}

/// Prefills and steps over one static cache, as in Python. One call at a time: a second one that comes meanwhile is refused.
public actor Session {
    public nonisolated let manifest: Manifest
    /// How many positions of the cache are filled.
    public private(set) var depth = 0

    private let engine: any Engine
    private var running = false

    public init(manifest: Manifest, engine: any Engine) {
        self.manifest = manifest
        self.engine = engine
    }

    public nonisolated var capacity: Int { manifest.capacity }
    public nonisolated var cacheBytes: Int { manifest.coreML.cache.bytes }

    /// Appends token ids, any number that fits; logits after the last one, `vocabSize` of them. Throws before anything is
    /// written when they do not fit.
    public func prefill(_ ids: [Int]) async throws -> [Float] {
        guard !running else { throw EdgeQKVError("this session is computing already; wait for it, or open another") }
        guard !ids.isEmpty else { throw EdgeQKVError("prefill needs at least one token id") }
        let known = manifest.model.config.tokenCount
        if let wrong = ids.first(where: { !(0..<known).contains($0) }) {
            throw EdgeQKVError("token id \(wrong) is out of range: this model knows 0 to \(known - 1)")
        }
        guard depth + ids.count <= capacity else {
            throw EdgeQKVError(
                "\(ids.count) more tokens do not fit: the cache holds \(capacity) positions and \(depth) are filled; reset the session, "
                    + "or export with a larger --capacity")
        }
        running = true
        defer { running = false }
        var logits: [Float] = []
        var rest = ids.map(Int32.init)[...]
        let chunk = manifest.coreML.prefillChunk
        while !rest.isEmpty {
            let function = rest.count >= chunk ? "prefill" : "decode"
            let next = Array(rest.prefix(function == "prefill" ? chunk : 1))
            logits = try await engine.logits(function: function, ids: next, position: Int32(depth))
            depth += next.count
            rest = rest.dropFirst(next.count)
        }
        return logits
    }

    /// Appends one token id; logits for the next.
    public func step(_ id: Int) async throws -> [Float] {
        try await prefill([id])
    }

    /// Starts over at depth 0. The cache stays as it is; old rows are never looked at again.
    public func reset() throws {
        guard !running else { throw EdgeQKVError("this session is computing already; wait for it, or open another") }
        depth = 0
    }

    /// Prefills `prompt`, then gives up to `limit` ids as `choose` takes them from the logits (greedy by default), or as many as
    /// the cache has room for and one more. Ends when the task that iterates is cancelled.
    public nonisolated func generate(
        _ prompt: [Int], limit: Int? = nil, choose: @escaping @Sendable ([Float]) -> Int = argmax
    ) -> AsyncThrowingStream<Int, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    var logits = try await self.prefill(prompt)
                    let room = await self.capacity - self.depth + 1
                    let count = min(limit ?? room, room)
                    for i in 0..<max(count, 0) {
                        try Task.checkCancellation()
                        let id = choose(logits)
                        continuation.yield(id)
                        if i + 1 < count { logits = try await self.step(id) }
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }
}

/// The first of the largest.
@Sendable public func argmax(_ logits: [Float]) -> Int {
    logits.indices.max { logits[$0] < logits[$1] || (logits[$0] == logits[$1] && $0 > $1) } ?? 0
}
