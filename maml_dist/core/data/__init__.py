"""Tasks as data: their keys, episodes and trajectories, and simulators."""
