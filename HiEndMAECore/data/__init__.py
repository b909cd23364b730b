"""Cases, data sets, label tables, and the store of preprocessed scans that pretraining reads."""
