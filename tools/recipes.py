"""Write the shipped recipes of public models, as `dpdmd new` writes them from the configurations in the package.

    python -m tools.recipes [NAME ...]

Run it after a change to `dpdmd.recipe.settings`; a test compares the files with what this writes. Each model has two:
NAME_dp_dmd trains all weights, NAME_lora_24gb adapters on one frozen backbone within 24 GiB.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from dpdmd.models.load import planning_adapter
from dpdmd.planning.fit import GIB
from dpdmd.planning.new import new_recipe
from dpdmd.recipe.settings import Trained
from dpdmd.store.files import write_text

FOLDER = Path(__file__).parents[1] / "src" / "dpdmd" / "recipes"


class Shipped(NamedTuple):
    """A shipped recipe: hub id of its model, what is trained, and the devices it is for, their memory in GiB."""

    model: str
    trained: Trained
    memory: int
    num_devices: int = 1


# Family: hub id, and common devices that take all of its weights (A100 80, H200 131, B200 179): GiB, and how many.
FAMILIES = {
    "sd35_medium": ("stabilityai/stable-diffusion-3.5-medium", 80, 2),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", 80, 2),
    "flux_dev": ("black-forest-labs/FLUX.1-dev", 131, 8),
    "sana": ("Efficient-Large-Model/Sana_1600M_1024px_diffusers", 80, 1),
    "qwen_image": ("Qwen/Qwen-Image", 179, 16),
    "z_image": ("Tongyi-MAI/Z-Image", 80, 8),
    "flux2_klein": ("black-forest-labs/FLUX.2-klein-base-4B", 80, 4),
    "krea2": ("krea/Krea-2-Raw", 131, 16),
    "lumina2": ("Alpha-VLLM/Lumina-Image-2.0", 80, 2),
    "sd15": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 48, 1),
    "sd21": ("stabilityai/stable-diffusion-2-1", 48, 1),
    "pixart_sigma": ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 48, 1),
    "longcat_image": ("meituan-longcat/LongCat-Image", 80, 8),
    "ernie_image": ("baidu/ERNIE-Image", 80, 16),
    "chroma": ("lodestones/Chroma1-HD", 80, 16),
}
RECIPES = {
    name: shipped
    for family, (model, memory, number) in FAMILIES.items()
    for name, shipped in (
        (f"{family}_dp_dmd", Shipped(model, "all", memory, number)),
        (f"{family}_lora_24gb", Shipped(model, "adapters", 24)),
    )
}


def text_of(name: str) -> str:
    """The shipped recipe of that name, written anew."""
    model, trained, memory, number = RECIPES[name]
    adapter = planning_adapter(model)
    return new_recipe(model, adapter, memory=memory * GIB, name=name, trained=trained, num_devices=number).text


def main() -> None:
    """Write all of them, or those named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*RECIPES, []])
    for name in parser.parse_args().names or RECIPES:
        write_text(FOLDER / f"{name}.toml", text_of(name))
        print(name, flush=True)


if __name__ == "__main__":
    main()
