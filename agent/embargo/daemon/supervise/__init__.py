"""The supervisor process: starts the others, runs the reloads, keeps the generations."""
