"""What does each system of the lectures do as a numerical method?

Images, autoencoders, estimators of gradients, games and stochastic networks: every system that the lectures show, on
real data where there is some, each with one question that has a number as its answer.
"""
