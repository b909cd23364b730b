"""Inference: from a scan and a model to a label map with its report."""
