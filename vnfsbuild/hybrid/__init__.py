"""From a plain root to one that boots on a node: what it must not keep, what it must have, and its initrd."""
