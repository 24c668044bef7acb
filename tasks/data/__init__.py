"""The dataset on disk or object storage: shards, records, index, splits, readers, and a look at it."""
