"""What turns a plain root into one that boots: the initrd and the scripts in it that run on a node."""
