//! Two networks that eat one list (page cache teleportation).
