"""What every long program shares: its folder, its lock, signals, progress, device, environment."""
