//! Dynamic self-ballooning.
