"""The tasks of the paper (section 3), where its data is, how it is prepared, what judges it."""
