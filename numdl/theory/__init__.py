"""PREDICTED: what theory says, from numbers and an Activation alone; never sees a network. Float64 NumPy comes out."""
