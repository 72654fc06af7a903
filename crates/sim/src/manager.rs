//! The manager of the third seed.
