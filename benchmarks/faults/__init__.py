"""The campaign of faults: what is done to a run, and whether it survives.

    python -m benchmarks.faults [--kills 200] [--mutations 10000] [--json FILE]

One file a fault: ``kills`` (a process ends at any moment), ``ranks`` (one of several processes
fails), ``growth`` (memory over a long run), ``forgeries`` (damaged checkpoints), ``bad_inputs``.
Each fault is tried in processes of its own, forked from one that has imported torch and taken a
few steps already, so that a run costs a fraction of a second. A fault is survived if the run ends
as an undisturbed one, bit for bit, or ends at once with one sentence; and if no process and no
file is left over.
"""
