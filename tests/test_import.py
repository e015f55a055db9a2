import json
import subprocess
import sys

CHECK = """
import sys, time
import torch
before = set(sys.modules)
started = time.perf_counter()
import dpdmd
seconds = time.perf_counter() - started
import json
heavy = ("diffusers", "transformers", "accelerate", "peft", "scipy", "pydantic", "typer", "PIL", "matplotlib", "jinja2")
print(json.dumps({"seconds": seconds, "heavy": [name for name in heavy if name in sys.modules and name not in before]}))
"""


def test_import_needs_torch_only_and_is_quick():
    out = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True).stdout
    result = json.loads(out)
    assert result["heavy"] == []
    assert result["seconds"] < 2


def test_every_public_name_exists_and_has_a_docstring():
    import dpdmd

    for name in dpdmd.__all__:
        value = getattr(dpdmd, name)
        assert value.__doc__ or name == "Role" or name == "Denoiser", name


def test_a_mistyped_name_is_answered_with_the_nearest():
    done = subprocess.run([sys.executable, "-c", "import dpdmd; dpdmd.trian"], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "AttributeError: No dpdmd attribute trian. Did you mean: 'train'?"
