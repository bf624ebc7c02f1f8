"""What each fused op is timed against."""
