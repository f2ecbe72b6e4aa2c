"""python -m rag.download: the data of the tasks and corpora, from where it is published."""
