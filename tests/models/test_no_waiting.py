"""An update never waits for the device: nothing in it depends on values that a device would have to send back.

On the meta device tensors have no values, so whatever asks for one (`item`, `tolist`, `bool`, `nonzero`, a mask as an
index, a copy to the CPU) raises. What goes the other way goes through `to_device`, by pinned memory.
"""

import traceback
from functools import partial

import torch
from families import taking_turns
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode

from dpdmd.distributed.processes import new_accelerator
from dpdmd.method.devices import to_device
from dpdmd.method.roles import Roles
from dpdmd.models.base import denoiser, encoded
from dpdmd.models.load import load_adapter
from dpdmd.recipe.resolve import resolve
from dpdmd.recipe.schema import Recipe
from dpdmd.training import updater
from dpdmd.training.data import BatchSource, EncodedPrompts
from dpdmd.training.updates import Denoisers, MicroLoss, fake_score_loss, student_loss

META = torch.device("meta")
# Not one length, so that masks count.
PROMPTS = ["a cross", "the small blue cross on a white background"]


def recipe_of(folder: str, kind: str = "renoise_last", **objective) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"teacher": folder, "num_inference_steps": 8},
            "student": {"num_steps": 4, "kind": kind},
            "objective": {"name": "dp_dmd"} | objective,
            "data": {"prompts": "scenes", "cache": "none"},
            "train": {"batch_size": 2, "random_step": True},
            "output": {"folder": "unused"},
        }
    )


class Copies(TorchDispatchMode):
    """Within the block `unstaged` gets every copy from the CPU to the device that is not made by `to_device`.

    Of numbers alone there may be some, such as a constant of a formula: they are part of a kernel's call. ALLOWED names
    the functions of others.
    """

    ALLOWED = ("transformer_chroma.py",)  # Chroma's own zeros in every call

    def __init__(self):
        super().__init__()
        self.unstaged: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and result.is_meta:
            frames = [frame for frame, _ in traceback.walk_stack(None)]
            staged = any(frame.f_code is to_device.__code__ for frame in frames)
            files = (frame.f_code.co_filename for frame in frames)
            caller = next(file for file in files if "/torch/" not in file and file != __file__)
            if args[0].ndim and not staged and not caller.endswith(self.ALLOWED):
                self.unstaged.append("".join(traceback.format_stack(limit=6)))
        return result


@taking_turns("target", {"secant": "secant", "x0": "x0"})
def test_the_losses_of_every_family_ask_for_no_value(family, folder, target):
    adapter = load_adapter(folder)
    kind = "renoise" if adapter.callback is None else "renoise_last"
    plan = resolve(recipe_of(folder, kind, anchor={"target": target}), adapter)
    roles = Roles({role: adapter.load_network().to(META) for role in ("student", "teacher", "fake_score")})
    denoisers = Denoisers(*(denoiser(adapter, roles, role) for role in ("student", "teacher", "fake_score")))
    prompts = EncodedPrompts(PROMPTS, partial(encoded, adapter), ["", "fog and rain"] if target == "x0" else None)
    layout = {"seed": 0, "batch_size": 2, "accumulation": 1, "fake_updates": 1, "rank": 0, "num_processes": 1}
    source = BatchSource(prompts, plan.latent_shape, device=META, **layout)
    with torch.no_grad():  # at its first call a network may move tables of positions
        first = source.micro_batch("student", 0, 0)
        for role in ("student", "teacher", "fake_score"):
            getattr(denoisers, role)(first.noise, first.levels.to(META), first.cond)
    with Copies() as copies:
        batch = source.micro_batch("student", 0, 0)
        loss = student_loss(denoisers, plan, batch)
        loss.total.backward()
        assert loss.x0 is not None and loss.x0.device == META
        fake_score_loss(denoisers, plan, batch, loss.x0).total.backward()
    assert not copies.unstaged, copies.unstaged[0]
    for role in ("student", "fake_score"):
        assert any(p.grad is not None for p in roles.modules[role].parameters()), role


def test_an_update_reads_one_list_of_numbers_and_no_more(tiny_folder, monkeypatch):
    adapter = load_adapter(tiny_folder("sd3"))
    plan = resolve(recipe_of(tiny_folder("sd3")), adapter)
    network, reads = adapter.load_network().to(META), []

    def loss() -> MicroLoss:
        total = sum(parameter.square().mean() for parameter in network.parameters())
        return MicroLoss(total, {"loss/one": total.detach(), "loss/two": total.detach()})

    def read(values):
        reads.append(list(values))
        return dict.fromkeys(values, 0.0)

    monkeypatch.setattr(updater, "on_cpu", read)
    # Only its kernel is another one: there is no fused one for a device without values.
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **options: AdamW(*args, **options))
    parameters = dict(network.named_parameters())
    trained = updater.Updater("student", network, parameters, new_accelerator(), plan.optimiser, 1e-3)
    log = trained.update(0, [loss, loss])
    assert reads == [["loss/one", "loss/two", "grad_norm/student", updater.BAD]]
    assert list(log) == ["loss/one", "loss/two", "grad_norm/student"]
