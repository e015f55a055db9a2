import pytest
import tiny_sd3


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory) -> str:
    """A random StableDiffusion3Pipeline folder whose T5 says nothing, as the built-in teacher's."""
    folder = tmp_path_factory.mktemp("sd3")
    tiny_sd3.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sd3_folder_with_t5(tmp_path_factory) -> str:
    """The same with a T5 that speaks, so that nothing can be folded."""
    folder = tmp_path_factory.mktemp("sd3_t5")
    tiny_sd3.save(folder, speaking_t5=True)
    return str(folder)
