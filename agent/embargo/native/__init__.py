"""The compiled twins: for each module with a hot function one of the same name, which gives the same results."""
