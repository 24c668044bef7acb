"""From sources to shards: discover, plan, run shard by shard, survive crashes; then the learned features."""
