"""Run benchmarks.quantization.equalization under its short name."""

from benchmarks.quantization.equalization import main

if __name__ == "__main__":
    main()
