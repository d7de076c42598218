"""The lab: servers as system containers on one machine, and the demo that runs in it."""
