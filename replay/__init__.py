"""`make replay`: machines with a known right answer, played to the shipped programs.

tree      a machine made of files: sysfs, procfs, cgroupfs, in the kernel's own formats
feeder    lets time pass on a machine and rewrites its files, in real time
agent     `joulegram agent --print` on such a machine; its frames, checked and added up
site      `joulegram collector` with agents that report to it; its page, /metrics and reports
gpus      GPUs played to NVIDIA's own binding by a library of the tests
case      what a case is, what it found, and what makes that right
cases/    the cases, by what they are about
table     right, got and verdict, for people and as JSON
"""
