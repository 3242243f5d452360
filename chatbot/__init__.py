"""The PyTorch tutorial's seq2seq chatbot: corpus, model, training and the ways to execute it.

Knows nothing of Ray, Arrow or W&B; only PyTorch (and Typer and Rich for its command line).
"""
