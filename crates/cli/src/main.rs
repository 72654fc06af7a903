//! The command `whimbrel`.
fn main() {}
