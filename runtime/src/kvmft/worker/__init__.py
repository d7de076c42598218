"""The worker: one process for each protected VM and side. It carries out what the core's machine decides.

`primary` and `secondary` are the two stories; each gives its jobs out to files of one job.

Both sides: `driver` (events in, effects carried out), `claims` (the arbiter), `peerlink` (the FT log),
`life` (signs of life on both networks), `audits`, `link` (the agent), `config` (the start line).

Primary: `qemu` (the process and its monitor), `stops` (stops that are no checkpoint), `engine`
(checkpoints), `first_sync` with `mirrors`, `disk_capture`, `disklog` and `resync` (memory and disks until
there is a pair), `output` (held packets), `watched_input`, `left_memory` (after a switchover),
`primary_status` with `stats` and `histogram`.

Secondary: `standby_qemu` (its memory, and loading device state over it), `stock` (what is here already),
`commits` with `replica` (journal, memory and disks), `carried_input`.
"""
