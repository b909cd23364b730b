"""Progress, events, figures, and the record of a run."""
