"""The production core under simulated time, network, crashes, disks and arbiter: `./dev sim`.

One integer seed is one schedule, bit for bit. `world` has time and wires, `worker`, `primary` and
`secondary` what the workers do around the core's machines, `host` what an agent does, `cluster` the
whole, `faults` what goes wrong, `history` what must never happen.
"""
