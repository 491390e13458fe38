"""How good the segmenter is on the frozen test split, and how sure of that we can be."""
