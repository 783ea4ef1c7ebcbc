"""What any program needs: files, memory, progress, precision, random numbers, many processes."""
