"""Parts of a training run: run folder, checkpoints, ranks, batch workers, seeds, precision, schedules."""
