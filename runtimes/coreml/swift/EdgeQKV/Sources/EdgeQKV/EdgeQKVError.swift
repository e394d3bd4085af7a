import Foundation

/// Every error that EdgeQKV throws on purpose: one sentence that says what is wrong, where, and what to do.
public struct EdgeQKVError: LocalizedError, Equatable, Sendable {
    /// The kinds of docs/sessions.md.
    public enum Kind: Sendable {
        case badInput, cacheFull, busy, checkFailed
    }

    public let kind: Kind
    public let errorDescription: String?

    public init(_ sentence: String, kind: Kind = .badInput) {
        self.kind = kind
        errorDescription = sentence
    }
}
