//! Decides while it runs.
