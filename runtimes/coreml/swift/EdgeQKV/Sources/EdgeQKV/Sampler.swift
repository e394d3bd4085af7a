import Foundation

/// How the next token is chosen from logits: the rules of docs/sessions.md, the same in every language.
///
/// Greedy when `temperature` is 0; otherwise softmax sampling from the `topK` best and the smallest set of them that holds `topP`
/// of the probability, seeded. `repetitionPenalty` lowers what the session already holds.
public struct Sampler: Equatable, Sendable {
    public let temperature: Double
    public let topK: Int?
    public let topP: Double
    public let repetitionPenalty: Double
    public let seed: UInt64

    /// The highest logit, the lowest id among equals.
    public static let greedy = try! Sampler()

    public init(
        temperature: Double = 0, topK: Int? = nil, topP: Double = 1, repetitionPenalty: Double = 1, seed: UInt64 = 0
    ) throws {
        guard temperature >= 0, temperature.isFinite else {
            throw EdgeQKVError("temperature must be 0 (greedy) or a positive number, found \(temperature)")
        }
        if let topK, topK < 1 { throw EdgeQKVError("top-k must be at least 1, found \(topK)") }
        guard topP > 0, topP <= 1 else { throw EdgeQKVError("top-p must lie between 0 and 1, found \(topP)") }
        guard repetitionPenalty > 0, repetitionPenalty.isFinite else {
            throw EdgeQKVError("the repetition penalty must be a positive number, found \(repetitionPenalty)")
        }
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.repetitionPenalty = repetitionPenalty
        self.seed = seed
    }

    /// The choices of one generation: its generator begins anew.
    func start() -> Choice {
        Choice(sampler: self, generator: SplitMix64(seed: seed))
    }

    struct Choice: Sendable {
        let sampler: Sampler
        var generator: SplitMix64

        /// The next id from `logits`, finite and one for each id that the model knows, and the `tokens` that the session holds.
        mutating func next(logits: ArraySlice<Float>, tokens: [Int]) -> Int {
            let scores = sampler.penalised(logits.map(Double.init), tokens: tokens)
            guard sampler.temperature > 0 else { return argmax(scores) }
            let weights = sampler.weights(scores)
            let threshold = generator.uniform() * weights.reduce(0, +)
            var running = 0.0
            for (id, weight) in weights.enumerated() {
                running += weight
                if running > threshold { return id }
            }
            return argmax(weights)
        }
    }

    /// Keskar et al., arXiv 1909.05858: each held id once.
    private func penalised(_ logits: [Double], tokens: [Int]) -> [Double] {
        guard repetitionPenalty != 1 else { return logits }
        var scores = logits
        for id in Set(tokens) {
            scores[id] = scores[id] > 0 ? scores[id] / repetitionPenalty : scores[id] * repetitionPenalty
        }
        return scores
    }

    private func weights(_ scores: [Double]) -> [Double] {
        let highest = scores.max() ?? 0
        var weights = scores.map { exp(($0 - highest) / temperature) }
        if let topK, topK < scores.count {
            let least = scores.sorted(by: >)[topK - 1]
            for id in scores.indices where scores[id] < least { weights[id] = 0 }
        }
        if topP < 1 {
            let order = weights.indices.sorted { weights[$0] > weights[$1] || (weights[$0] == weights[$1] && $0 < $1) }
            let wanted = topP * order.reduce(0.0) { $0 + weights[$1] }
            var running = 0.0
            var kept = 0
            while kept < order.count, running < wanted {
                running += weights[order[kept]]
                kept += 1
            }
            for id in order[kept...] { weights[id] = 0 }
        }
        return weights
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
struct SplitMix64: Sendable {
    private var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    /// In [0, 1): the upper 53 bits.
    mutating func uniform() -> Double {
        Double(next() >> 11) * 0x1p-53
    }
}

/// The first of the largest.
func argmax(_ values: [Double]) -> Int {
    values.indices.max { values[$0] < values[$1] || (values[$0] == values[$1] && $0 > $1) } ?? 0
}
