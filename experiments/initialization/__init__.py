"""What does chance make of a signal on its way through a deep network, before the first training step?

The weights are random: each network is one draw. Theory gives the law of what comes out from a few numbers (width,
depth, variance of the weights), and the measurement on many drawn networks says how far that law holds.
"""
