"""`python -m tests.benchmarks.on_gpu [SHARDS]`: every benchmark of a GPU, in 25 minutes; goes on if run again.

Each runs in a process of its own and leaves its CSV; those that this commit measured on this GPU are not repeated.
"""

import subprocess
import sys

# Minutes that each may take.
PARTS = {"ssl_step": 15, "detector": 4, "prediction_speed": 5}


def main() -> int:
    """Run what is missing; returns 0 if all were measured, else 3."""
    failed = []
    for name, minutes in PARTS.items():
        words = [sys.executable, "-m", f"tests.benchmarks.{name}", *(sys.argv[1:] if name == "ssl_step" else ())]
        try:
            subprocess.run(words, check=True, timeout=60 * minutes)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            failed.append(f"{name} ({'time is up' if isinstance(error, subprocess.TimeoutExpired) else 'failed'})")
    if failed:
        print(f"not complete: {', '.join(failed)}; run this again, it goes on from there", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
