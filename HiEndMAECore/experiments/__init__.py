"""Experiments: arms x training cases x seeds over data sets, as child processes, in a table that can be continued."""
