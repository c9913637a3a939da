"""Query and use the machine that a process runs on.

`chips` lists accelerators' peak rates, `limits` reads the limits on cores and open files, `locks` lets one
process at a time hold a file, `memory` measures a run's memory, `paths` reads and makes paths, and `names`
makes any file name printable. Every package may import it; it imports only errors.
"""
