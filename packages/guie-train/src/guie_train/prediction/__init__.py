"""Prediction: a trained model and images to a file of embeddings; submissions to the contest, checked and scored."""
