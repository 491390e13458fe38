"""What becomes of a trained model: lineage, MLflow runs, registered versions, and the models as MLflow loads them."""
