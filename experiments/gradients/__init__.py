"""How strong is the gradient when it arrives at the first layer, and can a network of that depth be trained?

On the way back the same random matrices multiply the gradient. Whether it vanishes, explodes or arrives follows from
initialization, activation, normalization and skip connections, and decides whether training begins at all.
"""
