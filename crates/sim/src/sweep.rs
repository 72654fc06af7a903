//! The same scenario with other values.
