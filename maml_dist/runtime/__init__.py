"""The actors and what keeps a run: shards, parameter server, launching, checkpoints, metrics."""
