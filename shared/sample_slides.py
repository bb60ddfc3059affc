"""Former name of the command `python -m shared.samples.sample_slides`."""

from shared.cli import run
from shared.samples.sample_slides import main

if __name__ == "__main__":
    run(main)
