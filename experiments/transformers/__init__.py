"""Will a transformer of this depth, norm and scale train, and at which rate?

At initialization attention is an average whose sharpness is one number, the stream is a sum whose growth is known, and
what an average forgets, gradients must forget on their way back. Theory gives all of it before the first step.
"""
