"""The store: an OCI image layout that holds capsules, and the words in which it describes a root."""
