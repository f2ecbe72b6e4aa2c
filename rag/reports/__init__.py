"""Tables, pages and pictures of what runs have measured."""
