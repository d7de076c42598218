"""The fault campaign: every row of the failure table, done to a protected guest in the lab."""
