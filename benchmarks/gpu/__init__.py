"""What a GPU is to show within a quarter of an hour: scripts/gpu_check.sh runs the parts one after the other.

    a  agreement.py   losses, gradients and answers on the GPU against the CPU
    b  training.py    training beside transformers' RAG
    c  decoding.py    decoding beside it
    d  embedding.py   passages embedded a second
    e  searching.py   exact search beside the memory's bandwidth
    f  miniwiki.py    the mini-wiki's RAG-Sequence trained to its bounds

They need torch, transformers, pytorch-lightning, pyarrow, rich and jaxtyping, and nothing else.
"""
