"""Where the rows of a run go beside its own files: what people watch runs with."""
