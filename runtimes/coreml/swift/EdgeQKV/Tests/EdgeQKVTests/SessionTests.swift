import Testing

@testable import EdgeQKV

/// Says that the next token is the last one plus one, remembers its calls, and fails at a position when it is told to.
actor CountingEngine: Engine {
    struct Call: Equatable {
        let function: String
        let ids: [Int32]
        let position: Int32
    }

    private(set) var calls: [Call] = []
    private let failsAt: Int32?
    private let next: Float

    init(failsAt: Int32? = nil, next: Float = 1) {
        self.failsAt = failsAt
        self.next = next
    }

    func logits(function: String, ids: [Int32], position: Int32) throws -> [Float] {
        if position == failsAt { throw EdgeQKVError("the engine failed", kind: .checkFailed) }
        calls.append(Call(function: function, ids: ids, position: position))
        return (0..<8).map { $0 < 6 ? ($0 == (Int(ids.last!) + 1) % 6 ? next : 0) : -.infinity }
    }
}

func session(_ engine: CountingEngine, endTokens: String = "[]") throws -> Session {
    let json = manifestJSON(replacing: "\"end_tokens\": []", with: "\"end_tokens\": \(endTokens)")
    return Session(manifest: try Manifest(json: json, name: "m"), engine: engine)
}

func ids(_ stream: AsyncThrowingStream<Int, any Error>) async throws -> [Int] {
    var found: [Int] = []
    for try await id in stream { found.append(id) }
    return found
}

func kind(_ body: () async throws -> Void) async -> EdgeQKVError.Kind? {
    do {
        try await body()
        return nil
    } catch {
        return (error as? EdgeQKVError)?.kind
    }
}

@Test func prefillsInChunksAndDecodesTheRest() async throws {
    let engine = CountingEngine()
    let session = try session(engine)
    let logits = try await session.prefill([0, 1, 2, 3, 4, 5])
    #expect(logits[0] == 1)
    #expect(
        await engine.calls == [
            .init(function: "prefill", ids: [0, 1, 2, 3], position: 0),
            .init(function: "decode", ids: [4], position: 4),
            .init(function: "decode", ids: [5], position: 5),
        ])
    #expect(await session.tokens == [0, 1, 2, 3, 4, 5])
    #expect(await session.logits == logits)
}

@Test func refusesWhatDoesNotFitBeforeAnythingIsWritten() async throws {
    let engine = CountingEngine()
    let session = try session(engine)
    _ = try await session.prefill(Array(repeating: 1, count: 32))
    let calls = await engine.calls.count
    #expect(await kind { _ = try await session.step(1) } == .cacheFull)
    #expect(await session.depth == 32)
    #expect(await session.logits != nil)
    try await session.reset()
    #expect(await kind { _ = try await session.prefill(Array(repeating: 1, count: 33)) } == .cacheFull)
    #expect(await kind { _ = try await session.feed(Array(repeating: 1, count: 33)) } == .cacheFull)
    #expect(await kind { _ = try await session.step(6) } == .badInput)
    #expect(await kind { _ = try await session.step(-1) } == .badInput)
    #expect(await kind { _ = try await session.prefill([]) } == .badInput)
    #expect(await kind { _ = try await session.feed([]) } == .badInput)
    #expect(await engine.calls.count == calls)
    #expect(await session.depth == 0)
}

@Test func rewindForgetsWhatFollows() async throws {
    let engine = CountingEngine()
    let session = try session(engine)
    _ = try await session.prefill([0, 1, 2, 3, 4])
    #expect(await kind { try await session.rewind(to: 6) } == .badInput)
    #expect(await kind { try await session.rewind(to: -1) } == .badInput)
    try await session.rewind(to: 5)
    #expect(await session.logits != nil)
    try await session.rewind(to: 3)
    #expect(await session.tokens == [0, 1, 2])
    #expect(await session.logits == nil)
    _ = try await session.step(5)
    #expect(await engine.calls.last == .init(function: "decode", ids: [5], position: 3))
}

@Test func feedPrefillsWhatIsNotHeld() async throws {
    let engine = CountingEngine()
    let session = try session(engine)
    _ = try await session.feed([0, 1, 2])
    _ = try await session.feed([0, 1, 4, 5])
    #expect(await session.tokens == [0, 1, 4, 5])
    #expect(await engine.calls.map(\.position) == [0, 1, 2, 2, 3])
    // Where all is held, the last one is run again for its logits.
    let logits = try await session.feed([0, 1, 4])
    #expect(logits[5] == 1)
    #expect(await session.tokens == [0, 1, 4])
    #expect(await engine.calls.last == .init(function: "decode", ids: [4], position: 2))
}

@Test func generatesUntilTheLimitOrTheCacheIsFull() async throws {
    let session = try session(CountingEngine())
    let first = try await ids(session.generate([0, 1], limit: 3))
    #expect(first == [2, 3, 4])
    #expect(await session.depth == 4)
    let more = try await ids(session.generate(limit: 2))
    #expect(more == [4, 5])
    #expect(await session.depth == 5)
    let none = try await ids(session.generate(limit: 0))
    #expect(none == [])
    try await session.reset()
    let all = try await ids(session.generate([0, 1]))
    #expect(all.count == 31)
    #expect(await session.depth == 32)
    try await session.reset()
    #expect(await kind { _ = try await ids(session.generate()) } == .badInput)
}

@Test func stopsBeforeAnEndToken() async throws {
    let session = try session(CountingEngine(), endTokens: "[5]")
    let found = try await ids(session.generate([0, 1]))
    #expect(found == [2, 3, 4])
    #expect(await session.tokens == [0, 1, 2, 3, 4])
    try await session.reset()
    let fewer = try await ids(session.generate([0, 1], endTokens: [3]))
    #expect(fewer == [2])
}

@Test func samplesByASeed() async throws {
    let session = try session(CountingEngine())
    let sampler = try Sampler(temperature: 2, seed: 7)
    let first = try await ids(session.generate([0], sampler: sampler, limit: 20))
    try await session.reset()
    let second = try await ids(session.generate([0], sampler: sampler, limit: 20))
    #expect(second == first)
    #expect(Set(first).count > 2)
    #expect(first.allSatisfy { $0 < 6 })
}

@Test func aFailurePartWayLeavesTheDepthAsItWas() async throws {
    let session = try session(CountingEngine(failsAt: 4))
    #expect(await kind { _ = try await session.prefill([0, 1, 2, 3, 4, 5]) } == .checkFailed)
    #expect(await session.tokens == [])
    #expect(await session.logits == nil)
}

@Test func logitsThatAreNotFiniteAreRefused() async throws {
    let session = try session(CountingEngine(next: .nan))
    #expect(await kind { _ = try await ids(session.generate([0])) } == .checkFailed)
}

@Test func generationPassesErrorsOn() async throws {
    let session = try session(CountingEngine())
    #expect(await kind { _ = try await ids(session.generate([99])) } == .badInput)
}

@Test func textWaitsForWholeCharacters() {
    var stream = TextStream { ids in ids.count == 2 ? "a\u{FFFD}" : ["", "a", "", "a\u{E9}"][ids.count] }
    #expect([stream.add(1), stream.add(2), stream.add(3)] == ["a", "", "\u{E9}"])
}
