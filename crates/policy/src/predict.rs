//! What each strategy would cost.
