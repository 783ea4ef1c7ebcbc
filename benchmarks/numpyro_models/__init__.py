"""NumPyro models of the posteriors that the benchmarks compare."""
