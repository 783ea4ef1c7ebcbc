"""General machinery: files, memory, progress, precision, random numbers, process groups."""
