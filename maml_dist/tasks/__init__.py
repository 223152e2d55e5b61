"""Task distributions, one a file. Each is a `maml_dist.core.data.task_source.TaskSource`."""
