"""Scans: what they are, how they are read, brought to the network's grid and back again."""
