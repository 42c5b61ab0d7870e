"""Run benchmarks.serving.batching under its short name."""

from benchmarks.serving.batching import main

if __name__ == "__main__":
    main()
