"""The workloads and the contenders that ``benchmarks.svi_step`` times."""
