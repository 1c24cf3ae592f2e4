"""The command line. One file per group of commands; the only place where an error becomes an exit code."""

import gc

# Importing makes many objects and no garbage; to look for some takes a tenth of the time that `vnfs mount` may take.
gc.set_threshold(50_000, 20, 100)
