"""The helios command."""
