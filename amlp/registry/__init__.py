"""What becomes of a trained model: lineage, MLflow runs, versions, cards, and the models as MLflow loads them."""
