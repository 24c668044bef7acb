"""Pass 1 inside one video: probe, decode, track, score, crop, encode. Nothing here knows shards."""
