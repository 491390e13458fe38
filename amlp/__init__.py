"""AMLP, Adjustable Masking Lesion Patches: self-supervised pre-training for lesion segmentation."""

__version__ = "0.1.0"
