"""Published results of variational auto-encoders, trained and measured here; see ``__main__``."""
