"""Write the shipped recipes of public models, as `dpdmd new` writes them from the configurations in the package.

    python -m tools.recipes

Run it after a change to `dpdmd.recipe.settings`; a test compares the files with what this writes.
"""

from pathlib import Path

from dpdmd.models.load import planning_adapter
from dpdmd.planning.fit import GIB
from dpdmd.planning.new import new_recipe
from dpdmd.store.files import write_text

FOLDER = Path(__file__).parents[1] / "src" / "dpdmd" / "recipes"
# Recipe: hub id, and the memory in GiB of the smallest common card that takes adapters of it.
RECIPES = {
    "sd35_medium_dp_dmd": ("stabilityai/stable-diffusion-3.5-medium", 24),
    "sdxl_dp_dmd": ("stabilityai/stable-diffusion-xl-base-1.0", 24),
    "flux_dev_dp_dmd": ("black-forest-labs/FLUX.1-dev", 24),
    "sana_dp_dmd": ("Efficient-Large-Model/Sana_1600M_1024px_diffusers", 24),
    "qwen_image_dp_dmd": ("Qwen/Qwen-Image", 48),
    "z_image_dp_dmd": ("Tongyi-MAI/Z-Image", 24),
    "flux2_klein_dp_dmd": ("black-forest-labs/FLUX.2-klein-base-4B", 24),
    "krea2_dp_dmd": ("krea/Krea-2-Raw", 24),
    "lumina2_dp_dmd": ("Alpha-VLLM/Lumina-Image-2.0", 24),
    "sd15_dp_dmd": ("stable-diffusion-v1-5/stable-diffusion-v1-5", 24),
    "sd21_dp_dmd": ("stabilityai/stable-diffusion-2-1", 24),
    "pixart_sigma_dp_dmd": ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 24),
    "longcat_image_dp_dmd": ("meituan-longcat/LongCat-Image", 24),
    "ernie_image_dp_dmd": ("baidu/ERNIE-Image", 24),
    "chroma_dp_dmd": ("lodestones/Chroma1-HD", 24),
}


def text_of(name: str) -> str:
    """The shipped recipe of that name, written anew."""
    model, memory = RECIPES[name]
    return new_recipe(model, planning_adapter(model), memory=memory * GIB, name=name, trained="adapters").text


def main() -> None:
    """Write all of them."""
    for name in RECIPES:
        write_text(FOLDER / f"{name}.toml", text_of(name))
        print(name, flush=True)


if __name__ == "__main__":
    main()
