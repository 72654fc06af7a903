//! Which heap regions to collect before a snapshot (ALMA).
