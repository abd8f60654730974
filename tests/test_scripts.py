"""The README's two commands, with pip, Python and the GPU played."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MODEL, ACCELERATION = "STREAMDIFFUSION_MODEL__MODEL_ID", "STREAMDIFFUSION_MODEL__ACCELERATION"
THREADS = "STREAMDIFFUSION_MODEL__THREADS"

# Plays .venv/bin/python: notes what pip is asked for, answers which torch is installed, says whether the
# index of CPU builds can be reached, and for the server lists the environment.
PYTHON = """
case "$*" in
*"pip --disable-pip-version-check list"*) cat torch 2>/dev/null || true ;;
*"-m pip"*) echo "${*#-m pip --disable-pip-version-check }" >>pip.log ;;
*urlopen*) test -e reachable ;;
"-m app.main") env ;;
"-m app.main "*) echo "$*"; exit 2 ;;
esac
"""


class Checkout:
    """The scripts and the requirements in a folder of their own, with played programs around them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.tools = folder / "tools"
        self.tools.mkdir()
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        for path in [ROOT / "run", *ROOT.glob("requirements*.txt"), ROOT / "constraints.txt"]:
            shutil.copy(path, self.folder)
        self.configure()
        # Not the real one, if this machine has a GPU.
        self.program(self.tools / "nvidia-smi", "exit 9")

    def program(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def configure(self, **values: str) -> None:
        """The configuration file that comes with the server, with other values."""
        (self.folder / "app/config").mkdir(parents=True, exist_ok=True)
        text = (ROOT / "app/config/config.yaml").read_text()
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^  {key}: .*", f"  {key}: {value}", text)
            if not count:
                text = text.replace("model:\n", f"model:\n  {key}: {value}\n")
        (self.folder / "app/config/config.yaml").write_text(text)

    def environment_made(self) -> None:
        self.program(self.folder / ".venv/bin/pip", "exit 1")
        self.program(self.folder / ".venv/bin/python", PYTHON)

    def gpu(self) -> None:
        self.program(self.tools / "nvidia-smi", "echo 'GPU 0: Played'")

    def call(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / command[0]), *command[1:]],
            env={"PATH": f"{self.tools}:/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def install(self, *arguments: str) -> list[str]:
        """Run scripts/install and return what it asked of pip."""
        done = self.call("scripts/install", *arguments)
        assert done.returncode == 0, done.stderr
        log = self.folder / "pip.log"
        asked = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return asked

    def serve(self, **variables: str) -> tuple[dict[str, str], str]:
        """Run ./run and return the variables that the server got, and what was said."""
        (self.folder / "scripts/install").write_text("#!/bin/sh\n")
        done = self.call("run", **variables)
        assert done.returncode == 0, done.stderr
        got = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("STREAM"))
        return got, done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture
def installed(checkout: Checkout) -> Checkout:
    checkout.environment_made()
    return checkout


def test_cpu_takes_the_small_torch_from_its_index(installed: Checkout) -> None:
    (installed.folder / "reachable").touch()
    assert installed.install() == [
        f"install -c constraints.txt --index-url {CPU_INDEX} torch",
        "install -c constraints.txt -r requirements.txt -r requirements-onnx.txt",
    ]


def test_cpu_without_that_index_takes_the_tested_version(installed: Checkout) -> None:
    assert installed.install()[0] == "install -c constraints.txt torch"


def test_torch_that_is_there_is_kept(installed: Checkout) -> None:
    (installed.folder / "torch").write_text("torch==2.13.0+cpu\n")
    assert installed.install() == ["install -c constraints.txt -r requirements.txt -r requirements-onnx.txt"]


def test_gpu_takes_the_usual_torch_and_xformers(installed: Checkout) -> None:
    installed.gpu()
    assert installed.install() == [
        "install -c constraints.txt -r requirements.txt -r requirements-xformers.txt"
    ]


def test_gpu_that_was_added_later_replaces_the_cpu_build(installed: Checkout) -> None:
    (installed.folder / "torch").write_text("torch==2.13.0+cpu\n")
    installed.install()
    installed.gpu()
    assert installed.install()[0] == "uninstall --yes torch"


def test_dev_adds_the_reference_without_its_old_libraries(installed: Checkout) -> None:
    assert installed.install("dev")[1:] == [
        "install -c constraints.txt -r requirements.txt -r requirements-dev.txt -r requirements-onnx.txt",
        "install --no-deps streamdiffusion==0.1.1",
        "install --no-deps triton==3.9.0",
    ]


def test_second_time_nothing_is_done_until_a_requirement_changes(installed: Checkout) -> None:
    assert installed.install()
    assert installed.install() == []
    with (installed.folder / "requirements.txt").open("a") as requirements:
        requirements.write("\n# changed\n")
    assert installed.install()


def test_from_another_folder_it_is_the_same_installation(installed: Checkout) -> None:
    installed.install()
    installed.program(installed.folder / "elsewhere", 'cd "${0%/*}/app" && ../scripts/install')
    done = installed.call("elsewhere")
    assert (done.returncode, done.stderr) == (0, "")
    assert not (installed.folder / "pip.log").exists()


def test_failed_installation_is_not_taken_for_done(installed: Checkout) -> None:
    installed.program(installed.folder / ".venv/bin/python", 'case "$*" in *install*) exit 1;; esac')
    assert installed.call("scripts/install").returncode != 0
    installed.environment_made()
    assert installed.install()


def test_no_usable_python(checkout: Checkout) -> None:
    for name in ("python3", "python3.10", "python3.11", "python3.12", "python3.13"):
        checkout.program(checkout.tools / name, "exit 1")
    done = checkout.call("scripts/install")
    assert done.returncode == 1
    assert done.stderr.startswith("Python 3.10, 3.11, 3.12 or 3.13 is needed; ")


def test_missing_venv_module_is_named(checkout: Checkout) -> None:
    body = 'case "$*" in *ensurepip*) exit 1;; *print*) echo 3.11;; esac'
    checkout.program(checkout.tools / "python3", body)
    done = checkout.call("scripts/install")
    assert done.returncode == 1
    assert done.stderr == (
        "Python's venv module is missing; install it with: sudo apt install python3.11-venv\n"
    )


def test_without_gpu_the_embedded_model_is_served_and_said_so(installed: Checkout) -> None:
    variables, said = installed.serve()
    assert variables[MODEL] == "models/mini"
    assert variables[ACCELERATION] == "auto"
    assert "No NVIDIA GPU was found" in said
    assert f"{MODEL}=stabilityai/sd-turbo ./run" in said


def test_options_reach_the_server_which_knows_none(installed: Checkout) -> None:
    (installed.folder / "scripts/install").write_text("#!/bin/sh\n")
    done = installed.call("run", "--port", "9000")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (2, "-m app.main --port 9000")


def test_own_model_is_served_on_the_cpu(installed: Checkout) -> None:
    variables, said = installed.serve(STREAMDIFFUSION_MODEL__MODEL_ID="some/model")
    assert variables == {MODEL: "some/model", ACCELERATION: "auto"}
    assert "your model runs on the CPU" in said


def test_variables_in_lower_case_count_as_they_do_for_the_server(installed: Checkout) -> None:
    variables, said = installed.serve(**{MODEL.lower(): "some/model"})
    assert MODEL not in variables
    assert "your model runs on the CPU" in said


def test_own_model_in_dotenv_is_left_alone(installed: Checkout) -> None:
    (installed.folder / ".env").write_text(f"{MODEL}=some/model\n{ACCELERATION}=compile\n")
    assert installed.serve()[0] == {}


@pytest.mark.parametrize("line", ["export {}=some/model", "{} = some/model", "  {}='some/model'"])
def test_dotenv_is_understood_as_the_server_does(line: str, installed: Checkout) -> None:
    for name in (MODEL, MODEL.lower()):
        (installed.folder / ".env").write_text(line.format(name))
        assert MODEL not in installed.serve()[0]
    (installed.folder / ".env").write_text(f"{MODEL}= \n")
    assert installed.serve()[0][MODEL] == "models/mini"


def test_commented_example_sets_nothing(installed: Checkout) -> None:
    shutil.copy(ROOT / ".env.example", installed.folder / ".env")
    assert installed.serve()[0][MODEL] == "models/mini"


def test_with_gpu_the_fastest_is_taken_unless_the_configuration_says_which(installed: Checkout) -> None:
    installed.gpu()
    assert installed.serve()[0] == {ACCELERATION: "auto"}
    installed.configure(acceleration="fused")
    assert installed.serve()[0] == {}


def test_without_gpu_the_configuration_says_which_too(installed: Checkout) -> None:
    installed.configure(acceleration="compile")
    assert ACCELERATION not in installed.serve()[0]


@pytest.mark.parametrize("line", ["{}=mine.yaml", "export {}='mine.yaml'"])
def test_a_configuration_file_of_ones_own_counts_by_what_it_says(line: str, installed: Checkout) -> None:
    own = installed.folder / "mine.yaml"
    (installed.folder / ".env").write_text(line.format("STREAMDIFFUSION_CONFIG"))
    own.write_text("server:\n  port: 9000\n")
    assert installed.serve()[0][MODEL] == "models/mini"
    own.write_text("model:\n    acceleration: compile\n    model_id: some/model\npipeline:\n    width: 384\n")
    variables, said = installed.serve()
    assert not {MODEL, ACCELERATION} & variables.keys()
    assert "your model runs on the CPU" in said


def test_model_in_the_configuration_file_is_served_on_the_cpu(installed: Checkout) -> None:
    installed.configure(model_id="some/model  # mine")
    variables, said = installed.serve()
    assert variables == {ACCELERATION: "auto"}
    assert "your model runs on the CPU" in said


def test_sizes_and_threads_in_the_configuration_file_count_without_gpu(installed: Checkout) -> None:
    installed.configure(threads="3", width="384")
    variables, _ = installed.serve()
    assert variables == {
        MODEL: "models/mini",
        ACCELERATION: "auto",
        "STREAMDIFFUSION_PIPELINE__HEIGHT": "256",
    }


def test_threads_leave_a_core_to_pictures_unless_they_give_way(installed: Checkout) -> None:
    installed.program(installed.tools / "nproc", "echo 8")
    assert THREADS not in installed.serve()[0]
    installed.configure(acceleration="onnx")
    assert THREADS not in installed.serve()[0]
    assert installed.serve(STREAMDIFFUSION_MODEL__ACCELERATION="none")[0][THREADS] == "7"
    installed.configure(acceleration="none")
    assert installed.serve()[0][THREADS] == "7"
    installed.program(installed.tools / "nproc", "echo 1")
    assert installed.serve()[0][THREADS] == "1"


@pytest.mark.parametrize(("check", "pytest_", "status"), [(0, 0, 0), (1, 0, 1), (0, 5, 5), (1, 5, 5)])
def test_tests_run_and_count_whatever_the_style(
    check: int, pytest_: int, status: int, installed: Checkout
) -> None:
    installed.program(installed.folder / "scripts/install", "")
    installed.program(installed.folder / "scripts/check", f"exit {check}")
    installed.program(installed.folder / ".venv/bin/python", f'echo "$@"; exit {pytest_}')
    done = installed.call("scripts/test", "-k", "some name")
    assert (done.returncode, done.stdout) == (status, "-m pytest -k some name\n")
