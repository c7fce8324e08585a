"""What Helios costs, side by side with its peers."""
