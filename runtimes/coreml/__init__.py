"""Core ML on macOS; elsewhere two ways to compute what a package says, to check it."""
