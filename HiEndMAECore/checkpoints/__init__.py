"""Weights on disk: the model folder, the authors' files, the catalogue, and the move from pretraining to fine-tuning."""
