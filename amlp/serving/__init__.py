"""Using a trained segmenter: on folders of pictures and volumes, and outside of PyTorch."""
