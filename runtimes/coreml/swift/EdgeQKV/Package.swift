// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "EdgeQKV",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "EdgeQKV", targets: ["EdgeQKV"])],
    dependencies: [.package(url: "https://github.com/huggingface/swift-transformers", from: "1.1.0")],
    targets: [
        .target(name: "EdgeQKV", dependencies: [.product(name: "Transformers", package: "swift-transformers")]),
        .testTarget(name: "EdgeQKVTests", dependencies: ["EdgeQKV"], resources: [.copy("sampling_cases.json")]),
    ]
)
