"""Registration of the labelled scan to other scans, without weights."""
