"""Finding what carries the data: importance of weights for some examples."""
