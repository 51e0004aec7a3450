"""What does a residual network inherit from the differential equation that it discretizes?

Stability, order, adjoints, reversibility and refinement have been studied for a century for solvers of differential
equations: which of it holds for trained networks, and down to which step?
"""
