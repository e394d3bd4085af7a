import Testing

@testable import EdgeQKV

/// Says that the next token is the last one plus one, and remembers its calls.
actor CountingEngine: Engine {
    struct Call: Equatable {
        let function: String
        let ids: [Int32]
        let position: Int32
    }

    private(set) var calls: [Call] = []

    func logits(function: String, ids: [Int32], position: Int32) -> [Float] {
        calls.append(Call(function: function, ids: ids, position: position))
        return (0..<8).map { $0 == (Int(ids.last!) + 1) % 6 ? 1 : 0 }
    }
}

func session(_ engine: CountingEngine) throws -> Session {
    Session(manifest: try Manifest(json: manifestJSON(), name: "m"), engine: engine)
}

@Test func prefillsInChunksAndDecodesTheRest() async throws {
    let engine = CountingEngine()
    let session = try session(engine)
    let logits = try await session.prefill([0, 1, 2, 3, 4, 5])
    #expect(argmax(logits) == 0)
    #expect(
        await engine.calls == [
            .init(function: "prefill", ids: [0, 1, 2, 3], position: 0),
            .init(function: "decode", ids: [4], position: 4),
            .init(function: "decode", ids: [5], position: 5),
        ])
    #expect(await session.depth == 6)
}

@Test func refusesWhatDoesNotFitBeforeAnythingIsWritten() async throws {
    let engine = CountingEngine()
    let session = try session(engine)
    _ = try await session.prefill(Array(repeating: 1, count: 32))
    let calls = await engine.calls.count
    await #expect(throws: EdgeQKVError.self) { try await session.step(1) }
    try await session.reset()
    await #expect(throws: EdgeQKVError.self) { try await session.prefill(Array(repeating: 1, count: 33)) }
    await #expect(throws: EdgeQKVError.self) { try await session.step(6) }
    await #expect(throws: EdgeQKVError.self) { try await session.step(-1) }
    await #expect(throws: EdgeQKVError.self) { try await session.prefill([]) }
    #expect(await engine.calls.count == calls)
    #expect(await session.depth == 0)
}

@Test func generatesUntilTheLimitOrTheCacheIsFull() async throws {
    let session = try session(CountingEngine())
    var ids: [Int] = []
    for try await id in session.generate([0, 1], limit: 3) { ids.append(id) }
    #expect(ids == [2, 3, 4])
    #expect(await session.depth == 4)
    try await session.reset()
    ids = []
    for try await id in session.generate([0, 1]) { ids.append(id) }
    #expect(ids.count == 31)
    #expect(await session.depth == 32)
}

@Test func generationPassesErrorsOn() async throws {
    let session = try session(CountingEngine())
    await #expect(throws: EdgeQKVError.self) {
        for try await _ in session.generate([99]) {}
    }
}

@Test func theFirstOfTheLargestIsChosen() {
    #expect(argmax([0, 2, 2, -.infinity]) == 1)
    #expect(argmax([-.infinity, -3]) == 1)
}

@Test func textWaitsForWholeCharacters() {
    var stream = TextStream { ids in ids.count == 2 ? "a\u{FFFD}" : ["", "a", "", "a\u{E9}"][ids.count] }
    #expect([stream.add(1), stream.add(2), stream.add(3)] == ["a", "", "\u{E9}"])
}
