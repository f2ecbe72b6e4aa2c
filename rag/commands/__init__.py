"""The scripts: train, evaluate and build_index, as commands and as functions of the same overrides."""
