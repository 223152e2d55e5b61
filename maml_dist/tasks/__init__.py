"""Task distributions, one a file. Each is a `maml_dist.core.source.TaskSource`."""
