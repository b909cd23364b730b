"""How good a segmentation is: overlap, surface distance, and how sure one can be of the mean."""
