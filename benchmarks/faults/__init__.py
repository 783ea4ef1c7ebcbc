"""The campaign of faults: each fault that is injected into runs, and whether they survive it.

    python -m benchmarks.faults [--kills 200] [--mutations 10000] [--json FILE]

One file a fault: ``kills`` (a process ends at any moment), ``ranks`` (one of several processes
fails), ``growth`` (memory over a long run), ``forgeries`` (damaged checkpoints), ``bad_inputs``.
Each fault is tried in its own processes, forked from one that has imported torch and taken a few
steps, so that a run takes a fraction of a second. A run survives if it ends bit for bit as an
undisturbed run, or ends immediately with one sentence, and if no process and no file is left over.
"""
