"""Reading and writing of scans and label maps, one module a format; no preprocessing and no torch."""
