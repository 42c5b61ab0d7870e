"""Run benchmarks.quantization.accuracy under its short name."""

from benchmarks.quantization.accuracy import main

if __name__ == "__main__":
    main()
