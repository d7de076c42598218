"""Is a history of concurrent operations linearizable? Pure: no lab, no clock, no I/O.

A history is what clients saw: each operation's call, its return (or none) and its result, with times
of one clock. It is linearizable when each operation can be given one instant between its call and its
return so that the results are those of the same operations done one after the other
(Herlihy & Wing 1990).
"""
