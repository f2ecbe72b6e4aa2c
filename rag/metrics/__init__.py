"""The metrics of the paper (sections 3 and 4.5), one family a file. Scores are fractions from 0 to 1."""
