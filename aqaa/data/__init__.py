"""Manifests, the synthetic corpus of spoken questions, stored tokens and batches."""
