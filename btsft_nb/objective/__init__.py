"""hidden states -> loss: the method itself.

In: a batch with `weights` and `kinds` for each token, and what the model says before its head.
Out: a loss, and the sums behind it.
Read `objective.py` first: it states the formula. `blur.py` draws which thought tokens are blurred,
`format_reward.py` is the second dial, `head.py` makes log-probabilities without logits, and `forward.py` runs it inside
the model.
"""

# Where the two dials stand if nothing is said, in the trainer and in every view of it.
THRESHOLD = 0.2
BETA = 0.5
