"""Speculation: cheap guesses of the next tokens, verified by the model in one pass.

    propose   a method guesses a chain of tokens behind what is known
    verify    one pass of the model reads the newest token and the guesses
    accept    tokens are taken from its logits as ever; the guesses that they repeat cost no pass

A token is always taken from the model's own logits, by the sequence's own sampler. So an answer is
the one that plain decoding writes: greedy to the bit, and sampled with the same seed the same
tokens, wherever logits do not depend on how tokens are cut into passes (see `steadiness`).
For guesses without a distribution of their own this is rejection sampling (Leviathan et al. 2023):
a guess is kept with the probability that the model gives it.
"""
