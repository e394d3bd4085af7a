import Foundation
import Testing

@testable import EdgeQKV

struct SamplingCases: Decodable {
    struct Uniform: Decodable {
        let seed: UInt64
        let values: [Double]
    }

    struct Case: Decodable {
        let temperature: Double?
        let top_k: Int?
        let top_p: Double?
        let repetition_penalty: Double?
        let seed: UInt64?
        let chosen: [Int]
    }

    let uniform: Uniform
    let logits: [Float]
    let held: [Int]
    let cases: [Case]

    init() throws {
        let file = try #require(Bundle.module.url(forResource: "sampling_cases", withExtension: "json"))
        self = try JSONDecoder().decode(SamplingCases.self, from: Data(contentsOf: file))
    }
}

@Test func choosesWhatPythonChooses() throws {
    let table = try SamplingCases()
    for expected in table.cases {
        let sampler = try Sampler(
            temperature: expected.temperature ?? 0, topK: expected.top_k, topP: expected.top_p ?? 1,
            repetitionPenalty: expected.repetition_penalty ?? 1, seed: expected.seed ?? 0)
        var choice = sampler.start()
        var held = table.held
        for _ in expected.chosen { held.append(choice.next(logits: table.logits[...], tokens: held)) }
        #expect(Array(held.dropFirst(table.held.count)) == expected.chosen)
    }
}

@Test func theGeneratorIsSplitMix64() throws {
    let table = try SamplingCases()
    var generator = SplitMix64(seed: table.uniform.seed)
    let values = table.uniform.values.map { _ in generator.uniform() }
    #expect(values == table.uniform.values)
    generator = SplitMix64(seed: 1_234_567)
    let numbers = [generator.next(), generator.next()]
    #expect(numbers == [6_457_827_717_110_365_317, 3_203_168_211_198_807_973])
}

@Test func refusesWhatIsOutsideOfItsRanges() {
    #expect(throws: EdgeQKVError.self) { try Sampler(temperature: -1) }
    #expect(throws: EdgeQKVError.self) { try Sampler(temperature: .nan) }
    #expect(throws: EdgeQKVError.self) { try Sampler(temperature: 1, topK: 0) }
    #expect(throws: EdgeQKVError.self) { try Sampler(temperature: 1, topP: 1.5) }
    #expect(throws: EdgeQKVError.self) { try Sampler(temperature: 1, topP: 0) }
    #expect(throws: EdgeQKVError.self) { try Sampler(repetitionPenalty: -1) }
}

@Test func theFirstOfTheLargestIsChosen() {
    #expect(argmax([0, 2, 2, -.infinity]) == 1)
    #expect(argmax([-.infinity, -3]) == 1)
}
