"""Section 4: what the trained models do, as tables and plots."""
