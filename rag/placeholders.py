"""What a model's description (rag/parts.py) says in place of what is only known where it is made again."""

# The folder with the parts' weights, the index and K: OmegaConf's interpolations, resolved in rag/saved_model.py.
FOLDER, INDEX, N_DOCS = "${folder}", "${index}", "${n_docs}"
