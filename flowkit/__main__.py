"""`python -m flowkit` is the `flowkit` command: `torchrun --nproc-per-node 2 -m flowkit examples colorization`."""

from flowkit.cli import main

if __name__ == "__main__":
    main()
