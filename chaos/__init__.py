"""`make chaos`: faults at random while agents stream; at the end joules sent = joules stored.

schedule  which fault, when, on whom, how long: from the seed alone
faults    what each fault does to a site
site      the parts of a shape, started, ended, held and let go by their pids
network   a TCP proxy that delays, refuses, resets, swallows and dawdles
disk      a small disk of its own: full, read-only; a page of random bytes
agent     the shipped spool and uplink, fed by a meter that writes down every frame
client    an agent of our own that repeats, shuffles and misdates
count     what was sent against what the ledger's readers see, frame by frame
"""
