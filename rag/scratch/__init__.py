"""Training every part from scratch, for a world too small and a machine too slow for the paper's pretrained models.

Nothing here belongs to the paper's own path, which starts from BERT and BART: a tokenizer learned from the corpus,
starting weights that learn to copy sooner, BART's denoising, and the inverse cloze task for DPR.
"""
