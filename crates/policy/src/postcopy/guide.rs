//! Guide-copy: pages that the forward context touches go first.
