"""What a machine can do: how many ranks it gets for which options, and what is told where it cannot."""

import subprocess
import sys

import pytest
import torch

from launch.machine import check_compiler, num_processes
from launch.run_dir import ConfigError

DDP = {"_target_": "pytorch_lightning.strategies.DDPStrategy"}
FSDP = {"_target_": "pytorch_lightning.strategies.FSDPStrategy"}
SLURM = DDP | {"cluster_environment": {"_target_": "pytorch_lightning.plugins.environments.SLURMEnvironment"}}

NO_GPU = "sees no GPU; use trainer=cpu or trainer=ddp_cpu"
NO_TASK = (
    "trainer=slurm: this process is no task of srun; use trainer=ddp on one machine, or start it with srun "
    "(docs/scaling.md)"
)


@pytest.fixture(autouse=True)
def typed_on_a_machine(monkeypatch):
    """A process that neither torchrun nor srun has started."""
    for name in ("RANK", "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def machine(monkeypatch):
    """A function that gives the machine some GPUs of NVIDIA's, or Apple's."""

    def make(gpus):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0 if gpus == "mps" else gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: gpus == "mps")
        monkeypatch.setattr(torch.version, "cuda", None)

    return make


def trainer(accelerator="auto", devices=1, strategy="auto", num_nodes=1):
    return {
        "accelerator": accelerator,
        "devices": devices,
        "strategy": strategy,
        "num_nodes": num_nodes,
    }


@pytest.mark.parametrize(
    "gpus, options, processes",
    [
        (0, trainer(), 1),
        (8, trainer(), 1),
        ("mps", trainer(), 1),
        (0, trainer(devices="auto"), 1),
        (1, trainer(devices="auto"), 1),
        (8, trainer(devices="auto"), 8),
        (8, trainer(devices=-1), 8),
        (8, trainer(devices="-1"), 8),
        (8, trainer("gpu", 2), 2),
        (8, trainer("cuda", "2"), 2),
        (8, trainer("gpu", [1, 7]), 2),
        (8, trainer("gpu", "0,3,5"), 3),
        (8, trainer("gpu", [7]), 1),
        (8, trainer("gpu", "auto", DDP), 8),
        (1, trainer("gpu", "auto", DDP), 1),
        (8, trainer("gpu", "auto", FSDP), 8),
        (8, trainer("auto", "auto", "fsdp"), 8),
        (0, trainer("cpu", 2), 2),
        (8, trainer("cpu", 2, DDP), 2),
        (0, trainer("auto", 3), 3),
        (0, trainer("auto", "3", "ddp"), 3),
        (8, trainer("cpu", "auto"), 1),
        ("mps", trainer("gpu"), 1),
        ("mps", trainer("mps", "auto"), 1),
    ],
)
def test_how_many_processes(gpus, options, processes, machine):
    machine(gpus)
    assert num_processes(options) == processes


@pytest.mark.parametrize(
    "gpus, options, told",
    [
        (0, trainer("gpu"), f"trainer.accelerator=gpu: torch {torch.__version__} {NO_GPU}"),
        (0, trainer("gpu", "auto", DDP), f"trainer.accelerator=gpu: torch {torch.__version__} {NO_GPU}"),
        (0, trainer("gpu", "auto", FSDP), f"trainer.accelerator=gpu: torch {torch.__version__} {NO_GPU}"),
        (0, trainer("auto", 2, FSDP), f"trainer.accelerator=auto: torch {torch.__version__} {NO_GPU}"),
        (8, trainer("mps"), f"trainer.accelerator=mps: torch {torch.__version__} {NO_GPU}"),
        ("mps", trainer("cuda"), f"trainer.accelerator=cuda: torch {torch.__version__} {NO_GPU}"),
        (8, trainer("cpu", 2, FSDP), "trainer.accelerator=cpu: FSDP needs GPUs; use trainer=ddp_cpu"),
        (8, trainer("gpu", 9), "trainer.devices=9: this machine has 8 GPUs"),
        (1, trainer("auto", 2, "ddp"), "trainer.devices=2: this machine has 1 GPU"),
        (8, trainer("gpu", [0, 8]), "trainer.devices=[0,8]: this machine has 8 GPUs"),
        (8, trainer("gpu", "0,8"), "trainer.devices=0,8: this machine has 8 GPUs"),
        (
            8,
            trainer("gpu", [1, 1]),
            "trainer.devices=[1,1]: must name at least one device, and none twice",
        ),
        (8, trainer("gpu", "0"), "trainer.devices=0: must name at least one device, and none twice"),
        (
            8,
            trainer("gpu", "all"),
            "trainer.devices=all: must be a number, auto, or which ones: 'trainer.devices=[0,2]'",
        ),
        (
            0,
            trainer("cpu", -1),
            "trainer.devices=-1: on a CPU it is how many processes there are, trainer.devices=2",
        ),
        (
            0,
            trainer("auto", [0, 1]),
            "trainer.devices=[0,1]: on a CPU it is how many processes there are, trainer.devices=2",
        ),
        (
            "mps",
            trainer("gpu", "auto", DDP),
            "trainer.devices=auto: Apple's GPU works alone, without DDP or FSDP; use trainer=gpu or trainer=ddp_cpu",
        ),
        (
            "mps",
            trainer("auto", 2),
            "trainer.devices=2: Apple's GPU works alone, without DDP or FSDP; use trainer=gpu or trainer=ddp_cpu",
        ),
        (8, trainer("gpu", 8, SLURM), NO_TASK),
        (
            8,
            trainer("gpu", 8, DDP, num_nodes=2),
            "trainer.num_nodes=2: on several machines torchrun or srun starts the processes (docs/scaling.md)",
        ),
    ],
)
def test_what_a_machine_cannot_do(gpus, options, told, machine):
    machine(gpus)
    with pytest.raises(ConfigError) as error:
        num_processes(options)
    assert str(error.value) == told


def test_a_build_for_cuda_that_sees_no_gpu_is_named(machine, monkeypatch):
    machine(0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ConfigError, match=r"torch \S+ \(CUDA 13.0\) sees no GPU"):
        num_processes(trainer("gpu"))


def test_several_machines_under_torchrun_and_srun(machine, monkeypatch):
    machine(8)
    monkeypatch.setenv("RANK", "3")
    assert num_processes(trainer("gpu", 8, DDP, num_nodes=2)) == 8
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    with pytest.raises(ConfigError, match="srun --ntasks=16: .* type srun --ntasks-per-node=N"):
        num_processes(trainer("gpu", 8, SLURM, num_nodes=2))
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert num_processes(trainer("gpu", 8, SLURM, num_nodes=2)) == 8


def test_torch_is_imported_for_gpus_only():
    code = (
        "import sys; from launch.machine import num_processes as n; "
        "print(n({'accelerator': 'auto', 'devices': 1, 'strategy': 'auto'}), n({'accelerator': 'cpu', 'devices': 4, "
        "'strategy': {'_target_': 'pytorch_lightning.strategies.DDPStrategy'}}), 'torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "1 4 False\n", ended.stderr


@pytest.mark.parametrize(
    "device, environ, told",
    [
        ("cpu", {"CXX": "/nowhere/g++"}, "there is no /nowhere/g++ here"),
        ("cuda", {"CC": "/nowhere/gcc"}, "there is no /nowhere/gcc here"),
        ("cuda", {"PATH": "/nowhere"}, "there is no gcc nor clang nor cc here"),
    ],
)
def test_compile_without_a_compiler(device, environ, told, monkeypatch):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        check_compiler(device, "compile=true")
    assert str(error.value).startswith(
        f"compile=true: torch.compile needs a compiler, and {told}; install one"
    )


def test_compile_with_the_compiler_that_is_named(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)
    check_compiler("cpu", "compile=true")
