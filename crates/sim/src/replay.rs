//! What a real migration recorded, decided again.
