"""What does an optimizer do to a loss, step by step, and what does the trained model know in the end?

Descent is a numerical method: it has a stable step, a rate and an error. From laws fitted to a few measurements to the
edge of stability, implicit bias and optimizers that are learned.
"""
