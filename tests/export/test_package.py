"""What lies around the C: built, tested and called as a user would."""

import shutil
import subprocess

import pytest
import torch
from torch import nn

import ellzero as ez
from c_programs import needs_gcc, succeed

pytestmark = needs_gcc

SKETCH = """
#define Arduino_h
struct { void begin(long) {} void println(int n) { printf("%d\\n", n); } } Serial;
inline void delay(long) {}
"""


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ez.trace(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 6))


@pytest.fixture(scope="module")
def integers(network):
    return ez.quantize(network, activations=8, data=torch.randn(50, 6)).model


@pytest.fixture(params=["float", "integers"])
def either(request, network, integers):
    return network if request.param == "float" else integers


def test_a_project_builds_and_tests_itself(tmp_path, either):
    ez.export_c(either, tmp_path / "c", name="gate", package="project", remark="Score: 0.9.")
    done = subprocess.run(["make", "test"], cwd=tmp_path / "c", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c" / "libgate.a").is_file()
    text = (tmp_path / "c" / "gate_test.c").read_text()
    # the test is what make runs: with another expectation it fails
    (tmp_path / "c" / "gate_test.c").write_text(text.replace("expected[", "7 + expected["))
    assert subprocess.run(["make", "test"], cwd=tmp_path / "c", capture_output=True).returncode
    assert "Score: 0.9." in (tmp_path / "c" / "README.md").read_text()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_builds_it_and_runs_the_test(tmp_path, either):
    ez.export_c(either, tmp_path / "c", package="project")
    build = tmp_path / "build"
    succeed(["cmake", "-S", str(tmp_path / "c"), "-B", str(build)], tmp_path)
    succeed(["cmake", "--build", str(build)], tmp_path)
    succeed(["ctest", "--test-dir", str(build), "--output-on-failure"], tmp_path)


def test_the_code_of_the_readme_compiles(tmp_path, either):
    ez.export_c(either, tmp_path, package="project")
    text = (tmp_path / "README.md").read_text()
    include, _, code = text.split("```c\n")[1].split("```")[0].partition("\n")
    main = f"{include}\nfloat values[NET_INPUTS];\nint main(void)\n{{\n{code}return best;\n}}\n"
    (tmp_path / "main.c").write_text(main)
    succeed(["gcc", "-std=c99", "-Werror", "net.c", "main.c", "-lm", "-o", "main"], tmp_path)


def test_an_arduino_library_compiles_as_cpp_and_runs(tmp_path, either):
    source = ez.export_c(either, tmp_path, name="gate", package="arduino")
    assert source.folder == tmp_path / "src"
    properties = (tmp_path / "library.properties").read_text().splitlines()
    # what Arduino's library specification asks for
    assert {line.partition("=")[0] for line in properties} >= {
        "name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url",
        "architectures",
    }  # fmt: skip
    sketch = (tmp_path / "examples" / "gate" / "gate.ino").read_text()
    (tmp_path / "sketch.cpp").write_text(
        f"#include <cstdio>\n{SKETCH}\n{sketch}\nint main() {{ setup(); loop(); return 0; }}\n"
    )
    succeed(["gcc", "-std=c99", "-c", "src/gate.c", "-o", "gate.o"], tmp_path)
    succeed(["g++", "-Werror", "-Isrc", "sketch.cpp", "gate.o", "-lm", "-o", "sketch"], tmp_path)
    done = subprocess.run(["./sketch"], cwd=tmp_path, capture_output=True, text=True, check=True)
    zeros = torch.zeros(1, 6)
    outputs = either(zeros) if either.graph.nodes[1].op.kind == "linear" else None
    if outputs is not None:
        assert int(done.stdout) == int(outputs.argmax())
    assert done.stdout.strip() in {"0", "1", "2"}
    command = ["gcc", "-std=c99", "-Isrc", "extras/gate_test.c", "gate.o", "-lm", "-o", "test"]
    succeed(command, tmp_path)
    succeed(["./test"], tmp_path)


def test_what_is_refused(tmp_path, network):
    with pytest.raises(ez.InputError, match="package is 'zip'; expected 'source'"):
        ez.export_c(network, tmp_path, package="zip")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ez.InputError, match="has its weights in arrays"):
        ez.export_c(network, tmp_path, package="arduino", weights="blob")
    with pytest.raises(ez.InputError, match=r"package \(--package\) are those of C source"):
        ez.Destinations(ellz=tmp_path / "net.ellz", package="arduino")


def test_no_file_around_it_is_replaced_unasked(tmp_path):
    (tmp_path / "Makefile").write_text("mine")
    with pytest.raises(ez.InputError, match="Makefile is there already"):
        ez.Destinations(c=tmp_path)
    ez.Destinations(c=tmp_path, package="source")
