"""Commands as tasks, run here or as Slurm jobs, and reports of them."""
