"""Running commands as tasks: locally or as Slurm jobs, in parts, and reports on them."""
