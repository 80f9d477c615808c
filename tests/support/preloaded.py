"""Python code in processes of its own, forked from one that has imported torch, transformers and layer_surgeon.

A new process spends 5 s of processor time on these imports. huggingface_hub and datasets read the environment when they
are imported. There, the process that is forked has a made-up Hub and folder, and a forked one has everything that
has their names in it read again or replaced (`_Places`).

A bare process is forked before transformers and layer_surgeon are imported.

This file is also the program of the process that is forked: `python -P preloaded.py SOCKET`.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

# None of them reads HF_* or SURGEON_* variables, and none of them imports a module that does.
BARE = (
    "numpy",
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "sklearn.metrics",
    "scipy.stats",
    "tokenizers",
    "safetensors.torch",
    "multiprocess",
    "requests",
    "aiohttp",
    "fsspec",
    "yaml",
    "jinja2",
    "rich.console",
    "typer",
)
_FORBIDDEN = ("huggingface_hub", "transformers", "datasets", "accelerate", "peft", "layer_surgeon", "layer_surgeon_cli")
# What the others get as well.
MORE = ("transformers.pipelines", "peft", "layer_surgeon.finetune.trainer", "layer_surgeon_cli.main")
# The modules that read HF_* variables when they are imported, and the values that they find there.
_SETTINGS = ("huggingface_hub.constants", "datasets.config")
MADE_UP = {"HF_HOME": "/made-up-home", "HF_ENDPOINT": "http://made-up.invalid"}
_DEFAULTS = {"HF_ENDPOINT": "https://huggingface.co"}
_TIMEOUT = 540.0  # seconds
# macOS doesn't support children that are forked after its own libraries were used. There, processes are new.
_CAN_FORK = sys.platform == "linux"


def clean_environment(cwd: Path) -> dict[str, str]:
    """Our own variables are never inherited. Neither a token nor a cache of this machine's user may help or disturb."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SURGEON_", "HF_"))}
    environment |= {"HF_HOME": str(cwd / ".hf"), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    # See tests/conftest.py.
    return environment | {"HF_DEACTIVATE_ASYNC_LOAD": "1"}


def run_code(
    code: str,
    *arguments: object,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    bare: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, in a folder, with a clean environment to which `env` is added.

    `bare` is for code whose imports of transformers and layer_surgeon are what is tested.
    """
    environment = clean_environment(cwd) | dict(env or {})
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    if not _CAN_FORK:
        how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": _TIMEOUT, "check": False}
        return subprocess.run(command, cwd=cwd, env=environment, input=stdin, **how)
    with contextlib.ExitStack() as stack:
        files: list[IO[str]] = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        files[0].write(stdin or "")
        files[0].seek(0)
        request = {"code": code, "arguments": command[2:3] + command[4:], "cwd": str(cwd)}
        request |= {"environment": environment, "bare": bare}
        returncode = _Server.shared().run(request, [file.fileno() for file in files])
        texts = []
        for file in files[1:]:
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(command, returncode, *texts)


class _Server:
    """The process that is forked. It starts when it is first needed, and ends with the tests."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(_TIMEOUT)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SURGEON_", "HF_"))}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                # One thread: a process with several can't be forked safely.
                env=environment | {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"},
                cwd=os.sep,
            )

    @classmethod
    @functools.cache
    def shared(cls) -> "_Server":
        return cls()

    def run(self, request: dict[str, Any], files: list[int]) -> int:
        """Run one request, and return the exit code of its process."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], files)
        answer = self._socket.recv(64)
        if not answer:
            raise RuntimeError(f"the preloaded process ended with exit code {self._process.wait()}")
        return int(answer)


class _Places:
    """Where modules and objects of the Hub's libraries keep the made-up values, or values that contain them."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi, HfFileSystem

        modules = [vars(module) for module in list(sys.modules.values())]
        objects = [vars(each) for each in gc.get_objects() if isinstance(each, (HfApi, HfFileSystem))]
        self._found = [
            (names, name)
            for names in (*modules, *objects)
            for name, value in list(names.items())
            if isinstance(value, str) and any(made_up in value for made_up in MADE_UP.values())
        ]

    def replace(self) -> None:
        """Have the settings read again from the environment, and put its values everywhere else."""
        for name in _SETTINGS:
            importlib.reload(sys.modules[name])
        for names, name in self._found:
            for variable, made_up in MADE_UP.items():
                names[name] = names[name].replace(made_up, os.environ.get(variable) or _DEFAULTS[variable])


def _serve(control: socket.socket, *, bare: bool) -> dict[str, Any] | None:
    """Fork a process for each request. Returns None at the end, and the request in a forked process.

    A bare server passes the requests of others on to a second server, which it forks for the first of them.
    """
    second: socket.socket | None = None
    while True:
        message, files, _, _ = socket.recv_fds(control, 1 << 20, 3)
        if not message:
            return None
        request: dict[str, Any] = json.loads(message)
        if bare and not request["bare"]:
            if second is None:
                second, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if not os.fork():
                    for end in (control, second):
                        end.close()
                    for file in files:
                        os.close(file)
                    return _serve_with_more(its_end)
                its_end.close()
            socket.send_fds(second, [message], files)
            answer = second.recv(64)
        else:
            pid = os.fork()
            if not pid:
                control.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return request
            _, status = os.waitpid(pid, 0)
            answer = str(os.waitstatus_to_exitcode(status)).encode()
        for file in files:
            os.close(file)
        control.send(answer)


def _serve_with_more(control: socket.socket) -> dict[str, Any] | None:
    os.environ.update(MADE_UP)
    _import(MORE)
    places = _Places()
    gc.freeze()
    request = _serve(control, bare=False)
    if request is not None:
        os.environ.clear()
        os.environ.update(request["environment"])
        places.replace()
    return request


def _import(names: Sequence[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(ModuleNotFoundError):  # not all of them are installed everywhere
                importlib.import_module(name)


def _main() -> None:
    _import(BARE)
    if imported := [name for name in _FORBIDDEN if name in sys.modules]:
        raise SystemExit(f"modules that read the environment must not be preloaded, but {imported} are")
    gc.freeze()
    request = _serve(socket.socket(fileno=int(sys.argv[1])), bare=True)
    if request is None:
        return
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    # As in tests/conftest.py.
    os.fsync = lambda _: None
    sys.argv = request["arguments"]
    sys.path[:0] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - the tests' own code


if __name__ == "__main__":
    _main()
