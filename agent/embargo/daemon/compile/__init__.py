"""The compiler process: lists to one generation; it reads, and writes the two files it was handed."""
