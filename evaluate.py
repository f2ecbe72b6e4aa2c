"""Evaluate a trained model: python evaluate.py checkpoint=RUN key=value …"""

from rag.commands.evaluate import main

if __name__ == "__main__":
    main()
