"""The command line. One file per group of commands; the only place where an error becomes an exit code."""
