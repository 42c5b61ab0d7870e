"""Run benchmarks.quantization.requant under its short name."""

from benchmarks.quantization.requant import main

if __name__ == "__main__":
    main()
