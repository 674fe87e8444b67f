"""The supervisor process: starts the other processes, carries out reloads, stores the generations."""
