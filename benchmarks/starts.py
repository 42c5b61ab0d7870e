"""Run benchmarks.serving.starts under its short name."""

from benchmarks.serving.starts import main

if __name__ == "__main__":
    main()
