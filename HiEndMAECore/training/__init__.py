"""Training: the pretraining and fine-tuning loops, and what they are made of."""
