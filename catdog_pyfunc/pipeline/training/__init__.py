"""Backbones, embeddings, linear head, fine-tuning, calibration, OOD, model card."""
