"""The Debian family: dpkg, apt and what they leave in a root."""
