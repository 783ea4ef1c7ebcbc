"""What ``benchmarks.svi_step`` times: workloads, and those who contend in them."""
