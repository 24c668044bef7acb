"""What runs around the flows: local stack, containers, cluster files, service."""
