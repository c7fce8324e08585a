"""Helios beside its peers: one command, one run, the same files, the same table."""
