"""The small modules that train_example.py is made of."""
