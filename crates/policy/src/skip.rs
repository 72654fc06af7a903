//! Skip areas and the transfer bitmap (JAVMM).
