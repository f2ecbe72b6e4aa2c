"""Train a retriever, a generator, or both end to end: python train.py experiment=… key=value …"""

from rag.commands.train import main

if __name__ == "__main__":
    main()
