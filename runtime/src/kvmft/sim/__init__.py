"""The production core under simulated time, network, crashes, disks and arbiter: `./dev sim`.

One integer seed is one schedule, bit for bit. `world` has time and wires, `sides` what workers and
agents do around the core's machines, `faults` what goes wrong, `history` what must never happen.
"""
