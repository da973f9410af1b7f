"""Compares models: what each answers to held-out questions with and without the experience, and how good that is."""
