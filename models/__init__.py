"""The gallery: one file a model, flat, each readable beside its equations."""
