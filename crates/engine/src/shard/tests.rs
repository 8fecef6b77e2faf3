//! Whole shards.
