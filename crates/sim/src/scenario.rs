//! What is simulated, as a TOML file says it.

/// A scenario.
#[derive(Clone, Debug, Default)]
pub struct Scenario {}

/// Why a text is no scenario: one sentence with file, line and key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {sentence}")]
pub struct ScenarioError {
    /// The file.
    pub file: String,
    /// The line in it, from 1 on.
    pub line: usize,
    /// What is wrong, and what is allowed.
    pub sentence: String,
}
