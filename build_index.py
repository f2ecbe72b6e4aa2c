"""Build the index of a corpus, offline and once: python build_index.py corpus.path=… passage_encoder=… key=value …"""

from rag.commands.build_index import main

if __name__ == "__main__":
    main()
