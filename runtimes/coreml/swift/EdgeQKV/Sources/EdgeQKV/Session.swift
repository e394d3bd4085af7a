/// What computes: Core ML in an app, anything else in a test.
public protocol Engine: Sendable {
    /// Runs the function `prefill` or `decode`: writes the rows of `ids` at `position` of the cache; logits after the last id.
    func logits(function: String, ids: [Int32], position: Int32) async throws -> [Float]
}

/// Prefills and steps over one static cache, by the rules of docs/sessions.md; saving, restoring and forking are not there.
///
/// One call at a time: a second one that comes meanwhile is refused. A call that is refused changes nothing.
public actor Session {
    public nonisolated let manifest: Manifest
    /// The ids that the session holds, one for each filled position.
    public private(set) var tokens: [Int] = []
    /// Those after the last token, `vocabSize` of them; nil at depth 0, after a rewind, and after a call that failed part way.
    public private(set) var logits: [Float]?

    private let engine: any Engine
    private var running = false

    public init(manifest: Manifest, engine: any Engine) {
        self.manifest = manifest
        self.engine = engine
    }

    /// How many positions of the cache are filled.
    public var depth: Int { tokens.count }
    public nonisolated var capacity: Int { manifest.capacity }
    public nonisolated var cacheBytes: Int { manifest.coreML.cache.bytes }

    /// Appends token ids, any number that fits; logits after the last one, `vocabSize` of them.
    public func prefill(_ ids: [Int]) async throws -> [Float] {
        try check(ids)
        guard ids.count <= capacity - depth else { throw full(ids.count, filled: depth) }
        return try await run(ids, after: depth)
    }

    /// Appends one token id; logits for the next.
    public func step(_ id: Int) async throws -> [Float] {
        try await prefill([id])
    }

    /// Makes the session hold exactly `ids`; logits after the last one.
    ///
    /// The longest prefix that it already holds, compared token by token, is kept, and the rest is prefilled: a conversation that
    /// grows costs what is new in it.
    public func feed(_ ids: [Int]) async throws -> [Float] {
        try check(ids)
        guard ids.count <= capacity else { throw full(ids.count, filled: 0) }
        let same = zip(tokens, ids).prefix { $0.0 == $0.1 }.count
        let kept = min(same, ids.count - 1)  // where all is held, the last one is run again for its logits
        return try await run(Array(ids[kept...]), after: kept)
    }

    /// Keeps the first `depth` tokens and forgets the others; exact, since a row does not depend on those after it.
    public func rewind(to depth: Int) throws {
        guard (0...tokens.count).contains(depth) else {
            throw EdgeQKVError("depth \(depth) is outside 0..\(tokens.count), the positions that are filled")
        }
        guard !running else { throw busy }
        if depth < tokens.count { forget(after: depth) }
    }

    /// Starts over at depth 0. The cache stays as it is; old rows are never looked at again.
    public func reset() throws {
        try rewind(to: 0)
    }

    /// Prefills `prompt` at once, then gives sampled ids; without a prompt it goes on from the logits that the session has.
    ///
    /// It ends before one of the bundle's end tokens or of `endTokens`, after `limit` ids, or when the cache is full. The last id
    /// is not fed back: as many come as there are free positions, and one more. Ends when the task that iterates is cancelled.
    public nonisolated func generate(
        _ prompt: [Int] = [], sampler: Sampler = .greedy, limit: Int? = nil, endTokens: Set<Int> = []
    ) -> AsyncThrowingStream<Int, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task {
                do {
                    try await self.sample(prompt, sampler, limit, endTokens) { continuation.yield($0) }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    private func sample(
        _ prompt: [Int], _ sampler: Sampler, _ limit: Int?, _ endTokens: Set<Int>, give: @Sendable (Int) -> Void
    ) async throws {
        if !prompt.isEmpty {
            _ = try await prefill(prompt)
        } else if logits == nil {
            throw EdgeQKVError("there are no logits to go on from; give at least one token id")
        }
        var choice = sampler.start()
        let ends = endTokens.union(manifest.text.endTokens)
        let room = capacity - depth + 1
        let count = min(limit ?? room, room)
        var given = 0
        while given < count {
            try Task.checkCancellation()
            guard let known = logits?.prefix(manifest.model.config.tokenCount) else {
                throw EdgeQKVError("this session was rewound while it generated", kind: .busy)
            }
            guard known.allSatisfy(\.isFinite) else {
                throw EdgeQKVError("the logits after \(depth) tokens are not finite", kind: .checkFailed)
            }
            let id = choice.next(logits: known, tokens: tokens)
            if ends.contains(id) { return }
            give(id)
            given += 1
            if given < count { _ = try await step(id) }
        }
    }

    /// Appends in the artifact's chunks to the first `kept` tokens. After a failure those alone are held, and there are no logits.
    private func run(_ ids: [Int], after kept: Int) async throws -> [Float] {
        guard !running else { throw busy }
        running = true
        defer {
            if logits == nil { forget(after: kept) }
            running = false
        }
        forget(after: kept)
        let chunk = manifest.coreML.prefillChunk
        var last: [Float] = []
        var rest = ids[...]
        while !rest.isEmpty {
            try Task.checkCancellation()
            let function = rest.count >= chunk ? "prefill" : "decode"
            let next = Array(rest.prefix(function == "prefill" ? chunk : 1))
            last = try await engine.logits(function: function, ids: next.map { Int32($0) }, position: Int32(depth))
            guard last.count == manifest.model.config.vocabSize else {
                throw EdgeQKVError("\(last.count) logits came, and the model has \(manifest.model.config.vocabSize)", kind: .checkFailed)
            }
            tokens += next
            rest = rest.dropFirst(next.count)
        }
        logits = last
        return last
    }

    private func forget(after depth: Int) {
        tokens.removeSubrange(depth...)
        logits = nil
    }

    private func check(_ ids: [Int]) throws {
        guard !ids.isEmpty else { throw EdgeQKVError("this needs at least one token id") }
        let known = manifest.model.config.tokenCount
        if let wrong = ids.first(where: { !(0..<known).contains($0) }) {
            throw EdgeQKVError("token id \(wrong) is out of range: this model knows 0 to \(known - 1)")
        }
    }

    private func full(_ count: Int, filled: Int) -> EdgeQKVError {
        EdgeQKVError(
            "\(count) \(filled > 0 ? "more " : "")tokens do not fit: the cache holds \(capacity) positions and \(filled) are filled; "
                + "reset the session, or export with a larger --capacity",
            kind: .cacheFull)
    }

    private var busy: EdgeQKVError {
        EdgeQKVError("this session is computing already; wait for it, or open another", kind: .busy)
    }
}
