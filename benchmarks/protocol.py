"""Run benchmarks.serving.protocol under its short name."""

from benchmarks.serving.protocol import main

if __name__ == "__main__":
    main()
