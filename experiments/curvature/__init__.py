"""What does the loss look like around the network while it trains, and what does its shape predict?

Eigenvalues of the Hessian with certified errors, tangent kernels, minima and the paths between them, and what becomes
of the features.
"""
