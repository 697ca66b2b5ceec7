"""Providing llama.cpp: what is refused, and what two set-ups at once do. The real build is what `make setup` runs."""

import io
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora.llama_cpp import tools as llama_cpp
from qlora.runtime.console import Refusal
from tools import llama_cpp_build

import pytest

CONVERTERS = (llama_cpp.CONVERTER, llama_cpp.ADAPTER_CONVERTER)


@pytest.fixture
def empty_machine(tmp_path, monkeypatch) -> Path:
    """No llama.cpp anywhere; returns the folder of the cache that a set-up would make."""
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(llama_cpp_build, "gpus", lambda: [])
    return llama_cpp.cache_folder()


def sdist(path: Path, *names: str) -> Path:
    """A .tar.gz with a small file under each name."""
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("x-1/vendor/llama.cpp/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return path


def test_tools_that_are_there_are_left_alone(capsys):
    llama_cpp_build.main()
    assert str(llama_cpp.find().server.parent) in capsys.readouterr().out


def test_a_folder_of_ones_own_that_lacks_them_is_not_built_around(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(Refusal, match="LLAMA_CPP_DIR"):
        llama_cpp_build.main()


def test_no_compiler(empty_machine, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with pytest.raises(Refusal, match=r"apt install g\+\+"):
        llama_cpp_build.main()
    assert not empty_machine.exists()


def test_index_out_of_reach(empty_machine, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(Refusal, match="pip could not fetch"):
        llama_cpp_build.main()
    assert [path.suffix for path in empty_machine.parent.iterdir()] == [".lock"]


def test_sources_with_another_hash(empty_machine, monkeypatch, tmp_path):
    sdist(tmp_path / f"llama_cpp_python-{llama_cpp.VERSION}.tar.gz", "x-1/pyproject.toml")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Refusal, match=r"(?s)pip could not fetch.*HASHES"):
        llama_cpp_build.main()


def test_only_the_sources_are_unpacked(tmp_path):
    tree = "x-1/vendor/llama.cpp"
    names = [f"{tree}/{name}" for name in ("CMakeLists.txt", "src/a.cpp", "../../out", "models/big.gguf")]
    archive = sdist(tmp_path / "x.tar.gz", "x-1/setup.py", *names)
    llama_cpp_build.unpack(archive, tmp_path / "deep/source")
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    assert written == {"x.tar.gz", "deep/source/CMakeLists.txt", "deep/source/src/a.cpp"}


def test_a_build_that_fails_shows_its_last_lines(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        'cmake_minimum_required(VERSION 3.14)\nmessage(FATAL_ERROR "no such luck")'
    )
    environment = llama_cpp_build.build_environment(nvcc=None)
    with pytest.raises(Refusal, match=r"(?s)no such luck.*run `make llama\.cpp` again"):
        llama_cpp_build.build(tmp_path, tmp_path / "build", environment, cuda=False)


def test_two_set_ups_at_once_build_once(empty_machine, monkeypatch, tmp_path):
    builds = []

    def build(source, folder, environment, cuda):
        builds.append(folder)
        time.sleep(0.3)
        (folder / "bin").mkdir(parents=True)
        for name in llama_cpp.TOOLS:
            (folder / "bin" / name).touch(mode=0o755)

    names = [f"x-1/vendor/llama.cpp/{name}" for name in (*CONVERTERS, "conversion/a", "gguf-py/a", "LICENSE")]
    archive = sdist(tmp_path / "x.tar.gz", *names)
    monkeypatch.setattr(llama_cpp_build, "download", lambda folder: archive)
    monkeypatch.setattr(llama_cpp_build, "build", build)
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda _: llama_cpp_build.main(), range(2)):
            pass
    assert len(builds) == 1
    assert llama_cpp.find().converter == empty_machine / llama_cpp.CONVERTER
    assert sorted(path.suffix for path in empty_machine.parent.iterdir()) == [".36-cpu", ".lock"]


def test_tools_without_converter_get_one(empty_machine, monkeypatch, tmp_path):
    for name in llama_cpp.TOOLS:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    names = [f"x-1/vendor/llama.cpp/{name}" for name in (*CONVERTERS, "conversion/a", "gguf-py/a", "LICENSE")]
    archive = sdist(tmp_path / "x.tar.gz", *names)
    monkeypatch.setattr(llama_cpp_build, "download", lambda folder: archive)
    llama_cpp_build.main()
    found = llama_cpp.find()
    assert [found.converter, found.adapter_converter] == [llama_cpp.converter_folder() / name for name in CONVERTERS]
