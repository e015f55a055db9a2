"""Make the built-in teachers again, from scratch (hours on two CPU cores).

python -m tools.pretrain --out runs/teacher
python -m tools.pretrain --out runs/teacher --stage autoencoder
"""

import argparse

from tools.pretrain.run import STAGES, pretrain


def main() -> None:
    """Read the command line and train the stages that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="Folder to write to. Finished stages in it are not repeated.")
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="Train one part only. Default: all.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything random. Default: 0.")
    parser.add_argument(
        "--processes", type=int, default=2, help="Processes that share a batch of the denoising networks. Default: 2."
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="Factor on every number of steps, for a quick look. Default: 1."
    )
    arguments = parser.parse_args()
    print(f"teachers in {pretrain(**vars(arguments))}")


if __name__ == "__main__":
    main()
