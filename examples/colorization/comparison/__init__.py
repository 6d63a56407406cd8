"""Table 1 of the paper and its ablations, at the size of a preset: `flowkit examples colorization --compare`.

Read `systems.py` first, which lists what is compared; `training.py` trains one, `judging.py` measures it, `run.py` does
so for all of them, one after the other.
"""
