"""Side-by-side timings; `python -m benchmarks.NAME` prints a table for the documentation."""
