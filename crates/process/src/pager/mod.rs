//! Memory that comes after its process has begun to run (post-copy).

pub mod lineage;
