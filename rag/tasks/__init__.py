"""The tasks of the paper (section 3), one a file: where the data is, how it is prepared, what judges it."""
