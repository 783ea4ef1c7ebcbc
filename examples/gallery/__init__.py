"""The figures of gallery pages, each with the training that it shows."""
