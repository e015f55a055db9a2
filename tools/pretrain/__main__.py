"""Train the built-in teachers from scratch. This takes hours on two CPU cores.

python -m tools.pretrain --out runs/teacher
python -m tools.pretrain --out runs/teacher --stage autoencoder
"""

import argparse

from tools.pretrain.run import STAGES, pretrain


def main() -> None:
    """Parse the command line and train the requested stages."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="Folder to write to; stages finished there are not repeated.")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="Stage to run. Default: all.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of all random numbers. Default: 0.")
    parser.add_argument(
        "--processes", type=int, default=2, help="Number of processes that train a denoising network. Default: 2."
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="Factor for all step counts; below 1 for a quick test. Default: 1.",
    )
    arguments = parser.parse_args()
    print(f"teachers: {pretrain(**vars(arguments))}")


if __name__ == "__main__":
    main()
