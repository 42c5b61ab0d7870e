"""Run benchmarks.quantization.cluster_affine under its short name."""

from benchmarks.quantization.cluster_affine import main

if __name__ == "__main__":
    main()
