//! A table, JSON, CSV and a page of what came out.
