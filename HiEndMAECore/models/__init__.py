"""The model folder: description, weights, packaged and foreign checkpoints."""
