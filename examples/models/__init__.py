"""Models of the kinds that people bring, with random weights: ``--model models.cnn:factory`` in ``examples``."""
