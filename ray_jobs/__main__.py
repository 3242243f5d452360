"""``python -m ray_jobs``."""

from ray_jobs.cli.app import main

if __name__ == "__main__":
    main()
