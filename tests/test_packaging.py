"""The package as others install it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_callbacks_are_one_package_through_the_link() -> None:
    """The folder `callbacks/` is imported as `megalit.callbacks`, not as a second copy of it."""
    import megalit.callbacks

    assert (ROOT / "megalit" / "callbacks").is_symlink()
    assert (ROOT / "megalit" / "callbacks").readlink() == Path("../callbacks")
    assert Path(megalit.callbacks.__file__).resolve() == ROOT / "callbacks" / "__init__.py"
    assert "callbacks" not in sys.modules


@pytest.mark.slow
def test_a_wheel_installs_into_a_fresh_environment(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    environment_folder = tmp_path / "environment"
    subprocess.run(["uv", "venv", "--quiet", str(environment_folder)], check=True)
    python = tmp_path / "environment" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def call(*command: object) -> str:
        result = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    call("uv", "pip", "install", "--quiet", "--python", python, wheel)
    assert "fit" in call(python.parent / "megalit", "--help")
    where = call(python, "-c", "import megalit.callbacks as c; print(c.__file__, c.ScalingLaw.__name__)")
    assert str(tmp_path / "environment") in where
    assert "ScalingLaw" in where
    assert "learning_rate" in call(
        python.parent / "megalit", "fit", "--config", ROOT / "configs" / "quickstart.yaml", "--print_config"
    )
