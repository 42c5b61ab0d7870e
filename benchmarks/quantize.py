"""Run benchmarks.quantization.quantize under its short name."""

from benchmarks.quantization.quantize import main

if __name__ == "__main__":
    main()
