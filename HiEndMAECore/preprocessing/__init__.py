"""From a scan on its original grid to what a network sees, and back."""
