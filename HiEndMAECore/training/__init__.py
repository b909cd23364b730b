"""The two loops, pretraining and fine-tuning, and what they share."""
