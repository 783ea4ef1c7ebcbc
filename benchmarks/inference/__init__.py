"""Parts of the benchmark of inference methods."""
