"""What training runs share: run folder, checkpoints, ranks, seeds, precision, schedules."""
