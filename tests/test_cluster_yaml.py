"""cluster.yaml, kuberay.yaml and their guide as far as no cloud is needed: Ray's own schema, every
file, command and option that they name, and an installation from just what the nodes get."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_command

from rlsparse_ray.cli import app

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CLUSTER = yaml.safe_load(TEXT)
KUBERAY_TEXT = (ROOT / "kuberay.yaml").read_text()
RAY_JOB, CRON_JOB = yaml.safe_load_all(KUBERAY_TEXT)
CONSTRAINTS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
)
VERBS = typer.main.get_command(app).commands
SECRET = re.compile(r"hf_\w{8}|AKIA\w{8}|SECRET_ACCESS_KEY|aws_secret", re.IGNORECASE)


@pytest.fixture(scope="module")
def prepared():
    """What `ray up` makes of the file: with Ray's defaults, checked by Ray's schema."""
    config = prepare_config(yaml.safe_load(TEXT))
    validate_config(config)
    return config


NODE_TYPES = CLUSTER["available_node_types"]


def workers(config=CLUSTER):
    types = config["available_node_types"]
    return {name: kind for name, kind in types.items() if name != config["head_node_type"]}


def commands(config):
    """Every command for nodes: setup and start."""
    lists = [config[key] for key in config if key.endswith("_commands")]
    lists += [kind.get("worker_setup_commands", []) for kind in workers(config).values()]
    return [command for each in lists for command in each]


def marks(text):
    return re.findall(r"# (\(\d\))", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))


# Ray


def test_the_schema_sees_mistakes(prepared):
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config({**prepared, "max_worker": 3})


def test_workers_come_from_zero_on_spot(prepared):
    for kind in workers(prepared).values():
        assert (kind["min_workers"], kind["max_workers"]) == (0, prepared["max_workers"])
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert prepared["provider"]["cache_stopped_nodes"] is False


def test_the_head_is_on_demand_and_runs_no_slice(prepared):
    head = prepared["available_node_types"][prepared["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0


def test_resources():
    found = {name: kind["resources"] for name, kind in workers().items()}
    assert found == {"cpu": {"CPU": 16}, "gpu": {"CPU": 16, "GPU": 1}}


def test_only_the_head_may_start_nodes():
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in CLUSTER["available_node_types"].items()
    }
    assert profiles == {"head": "rlsparse-head", "cpu": "rlsparse-worker", "gpu": "rlsparse-worker"}


def test_five_marked_lines():
    assert sorted(marks(TEXT)) == [f"({n})" for n in range(1, 6)]
    assert sorted(marks(KUBERAY_TEXT)) == [f"({n})" for n in range(1, 5)]


def test_no_secrets():
    for text in (TEXT, KUBERAY_TEXT, (ROOT / "jobs" / "runtime_env.yaml").read_text()):
        values = "\n".join(line.partition("#")[0] for line in text.splitlines())
        assert not SECRET.search(values)


# What the nodes get


def test_mounted_files_exist():
    private = {"~/.cache/huggingface/token", "~/.ray/auth_token"}
    local = set(CLUSTER["file_mounts"].values())
    assert private <= local
    for path in local - private:
        assert path.startswith("./")
        assert (ROOT / path).exists(), path


def test_commands_are_shell(prepared):
    for command in commands(prepared):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_environment_of_nodes(tmp_path):
    """The two commands that write it, done twice, as after another `ray up`."""
    (tmp_path / ".bashrc").write_text("# as it was\n")
    (tmp_path / "cloud-init").write_text("#!/bin/sh\necho us-west-2\n")
    (tmp_path / "cloud-init").chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    mine = [c for c in CLUSTER["setup_commands"] if ".rlsparse.env" in c]
    assert len(mine) == 2
    for command in mine * 2:
        subprocess.run(["bash", "-c", command], env=environment, check=True)
    assert (tmp_path / ".bashrc").read_text() == "# as it was\n. ~/.rlsparse.env\n"
    done = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; env"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert seen["PATH"] == f"{tmp_path}/venv/bin:{environment['PATH']}"
    assert seen["RLSPARSE_STORE"].startswith("s3://")
    wanted = {"AWS_REGION": "us-west-2", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    assert {name: seen[name] for name in wanted} == wanted


def test_everything_installed_is_pinned(prepared):
    installs = [c for c in commands(prepared) if "pip install" in c]
    for command in installs:
        ours = re.search(
            r'--constraint ~/rlsparse/constraints\.txt .*"\$HOME/rlsparse\[demo\]"$', command
        )
        assert ours or re.search(r" \w+==\S+$", command), command
    assert f"ray[default]=={CONSTRAINTS['ray']}" in TEXT
    (boto,) = {c.split()[-1] for c in installs if "boto3" in c}
    assert TEXT.count(boto) == 2


def test_torch_with_cuda_is_for_gpus_only():
    (cuda,) = (c for c in workers()["gpu"]["worker_setup_commands"] if "pip install" in c)
    (cpu,) = (c for c in CLUSTER["setup_commands"] if "pip install" in c)
    assert "--extra-index-url https://download.pytorch.org/whl/cpu" in cpu
    assert "index" not in cuda
    own = workers()["gpu"]["worker_setup_commands"]
    assert own[:-1] == CLUSTER["setup_commands"][:-1]


@pytest.mark.slow
def test_what_is_copied_can_be_installed(tmp_path):
    node = tmp_path / "node"
    for remote, local in CLUSTER["file_mounts"].items():
        if local.startswith("./"):
            target = node / remote.removeprefix("~/rlsparse/")
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / local).is_dir() else shutil.copy
            copy(ROOT / local, target)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, node], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"rlsparse_ray/cluster/__init__.py", "rlsparse_ray/queries/setup.sql"} <= names
    assert "rlsparse_ray/corpora/paper.yaml" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_image_has_what_reproduce_trains_with(tmp_path):
    """The Dockerfile's own line, on this pyproject.toml."""
    (code,) = re.findall(r'^RUN python -c "(.*?)" >', DOCKERFILE, re.MULTILINE | re.DOTALL)
    code = code.replace("\\\n", "").replace("/tmp/rlsparse", str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    expected = {*project["dependencies"], *extras["train"], *extras["demo"]}
    assert set(done.stdout.splitlines()) == expected - {"rlsparse-ray[train]"}


def test_the_working_directory_of_jobs():
    runtime_env = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    here = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    assert runtime_env["pip"] == [f"--constraint {here}/constraints.txt", f"{here}[demo]"]
    needed = {"rlsparse_ray", "queries", "jobs", "pyproject.toml", "README.md", "LICENSE"}
    needed.add("constraints.txt")
    excluded = set(runtime_env["excludes"])
    assert needed & excluded == set()
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    assert set(ignored) - {"*.egg-info"} <= excluded
    for name in needed:
        assert (ROOT / name).exists()


# Kubernetes: the keys of the published definitions that these files may use

RAY_JOB_KEYS = {
    "entrypoint",
    "backoffLimit",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "rayClusterSpec",
}
CLUSTER_KEYS = {
    "rayVersion",
    "enableInTreeAutoscaling",
    "authOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
GROUP_KEYS = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
}


def test_ray_job():
    assert (RAY_JOB["apiVersion"], RAY_JOB["kind"]) == ("ray.io/v1", "RayJob")
    spec = RAY_JOB["spec"]
    assert spec.keys() <= RAY_JOB_KEYS
    # a gated model would start the whole cluster again
    assert spec["backoffLimit"] == 0
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() <= CLUSTER_KEYS
    assert cluster["rayVersion"] == CONSTRAINTS["ray"]
    assert cluster["headGroupSpec"].keys() <= GROUP_KEYS
    # KubeRay takes strings only
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == GROUP_KEYS
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]


def pods():
    cluster = RAY_JOB["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    yield CRON_JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def test_pods_share_image_and_secret():
    containers = [container for pod in pods() for container in pod["containers"]]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {c["image"].rpartition(":")[2] for c in containers} == {version}
    assert {c["image"] for c in containers} == {containers[0]["image"]}
    for container in containers:
        assert container["envFrom"] == [{"secretRef": {"name": "rlsparse"}}]
        # Ray counts limits; a pod with less asked for than allowed may be killed in its middle
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_cron_job():
    assert (CRON_JOB["apiVersion"], CRON_JOB["kind"]) == ("batch/v1", "CronJob")
    spec = CRON_JOB["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert len(spec["schedule"].split()) == 5
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    "words",
    [
        RAY_JOB["spec"]["entrypoint"].split(),
        CRON_JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"],
    ],
    ids=" ".join,
)
def test_what_pods_run_exists(words):
    program, verb, corpus = words
    assert program == "rlsparse"
    assert verb in VERBS
    assert (ROOT / "rlsparse_ray" / "corpora" / f"{corpus}.yaml").exists()


# The guide

GUIDE = (ROOT / "docs" / "cluster.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


GUIDE_COMMANDS = [
    line.removeprefix("$ ").removeprefix("0 3 * * * ").partition(" >>")[0]
    for block in [*blocks("console"), *blocks("text")]
    for line in block.splitlines()
    if line.startswith(("$ ra", "0 3 "))
]


def check_options(command, words):
    known = {option for param in command.params for option in param.opts}
    assert {word for word in words if word.startswith("--")} <= known


def check_command(words):
    """The program has the command, and the command the options; what follows `--` as well."""
    if words[0] == "ray":
        words, rest = _cut(words, "--")
        command = ray_command
        while getattr(command, "commands", None):
            words = words[1:]
            command = command.commands[words[0]]
        check_options(command, words)
        if rest:
            check_command(rest)
    elif words[0] == "python":
        assert (ROOT / words[1]).exists()
        check_command(["rlsparse", Path(words[1]).stem, *words[2:]])
    else:
        assert words[0] == "rlsparse"
        check_options(VERBS[words[1]], words)


def _cut(words, at):
    place = words.index(at) if at in words else len(words)
    return words[:place], words[place + 1 :]


@pytest.mark.parametrize("line", GUIDE_COMMANDS)
def test_commands_of_the_guide_exist(line):
    check_command(shlex.split(line))


def test_the_guide_has_commands_of_all_kinds():
    assert {" ".join(line.split()[:2]) for line in GUIDE_COMMANDS} >= {
        "ray up",
        "ray down",
        "ray job",
        "rlsparse refresh",
    }


def test_shell_blocks_of_the_guide():
    for block in blocks("bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    policies = re.findall(r"^\w+='(\{.*\})'$", GUIDE, re.MULTILINE)
    assert len([json.loads(text) for text in policies]) == 3
    roles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in NODE_TYPES.values()}
    assert f"for role in {' '.join(sorted(roles, reverse=True))}; do" in GUIDE
    image = RAY_JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert f"docker push {image['image']}\n" in GUIDE
    assert f"ARG BASE=rayproject/ray:{CONSTRAINTS['ray']}-" in DOCKERFILE
    assert re.search(r"^# +(pip install ray.*)$", TEXT, re.MULTILINE).group(1) in GUIDE
