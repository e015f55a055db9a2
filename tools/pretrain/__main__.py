"""Train the built-in teachers from scratch. This takes hours on two CPU cores.

python -m tools.pretrain --out runs/teacher
python -m tools.pretrain --out runs/teacher --stage autoencoder
python -m tools.pretrain --world drawings --out runs/drawings
"""

import argparse

from tools.pretrain.drawings.run import STAGES as DRAWINGS_STAGES
from tools.pretrain.drawings.run import pretrain_drawings
from tools.pretrain.run import STAGES, pretrain


def main() -> None:
    """Parse the command line and train the requested stages."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="Folder to write to; stages finished there are not repeated.")
    parser.add_argument("--world", choices=("scenes", "drawings"), default="scenes", help="Default: scenes.")
    stages = dict.fromkeys(("all", *STAGES, *DRAWINGS_STAGES))
    parser.add_argument("--stage", choices=stages, default="all", help="Stage of the world to run. Default: all.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of all random numbers. Default: 0.")
    parser.add_argument(
        "--processes",
        type=int,
        default=2,
        help="Number of processes that train a denoising network of scenes; that of drawings has one. Default: 2.",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="Factor for all step counts; below 1 for a quick test. Default: 1.",
    )
    arguments = vars(parser.parse_args())
    if arguments.pop("world") == "drawings":
        del arguments["processes"]
        print(f"teacher: {pretrain_drawings(**arguments)}")
    else:
        print(f"teachers: {pretrain(**arguments)}")


if __name__ == "__main__":
    main()
