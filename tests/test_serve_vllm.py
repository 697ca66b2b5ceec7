"""What is refused before vLLM starts. vLLM itself lives in an environment of its own: benchmarks/vllm_parity.py."""

from pathlib import Path

from conftest import Workspace, refused


def test_what_cannot_be_served_is_refused(workspace: Workspace):
    environment = {"VLLM_API_KEY": ""}
    assert "set VLLM_API_KEY" in refused(workspace.tool("serve_vllm", "--host", "0.0.0.0", **environment))
    assert "run `dvc repro merge`" in refused(workspace.tool("serve_vllm", **environment))
    (workspace.path / "models").mkdir()
    Path(workspace.path / "models/merged").symlink_to(workspace.path / "tiny")
    assert "make serve-vllm" in refused(workspace.tool("serve_vllm", **environment))
