"""AMLP itself: lesion scores, masked patch selection, the masking ratio and the losses, free of data and training."""
