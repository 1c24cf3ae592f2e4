"""The thin serving module: immutable bytes by digest, an iPXE script per node, and what nodes report. Also the trial
boot in QEMU, which goes the same way as a node."""
