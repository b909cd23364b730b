"""What a run tells the world while it works, and what it leaves behind to be read."""
