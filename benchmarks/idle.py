"""Run benchmarks.serving.idle under its short name."""

from benchmarks.serving.idle import main

if __name__ == "__main__":
    main()
