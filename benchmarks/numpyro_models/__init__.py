"""Posteriors of the gallery as NumPyro models, to compare vilvm with NumPyro."""
