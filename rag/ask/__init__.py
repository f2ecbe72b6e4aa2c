"""Asking a trained model: the terminal (python -m rag.ask) and the page."""
