"""Integer C where int has 16 bits: compiled for an AVR and run in simavr."""

import shutil
import subprocess

import pytest

import ellzero as ez
from c_programs import succeed
from ellzero.operations import Flatten
from integer_programs import IntegerBuilder, random_integers, rows_of_kernels

pytestmark = pytest.mark.skipif(
    shutil.which("avr-gcc") is None or shutil.which("simavr") is None,
    reason="avr-gcc or simavr is not installed",
)

MAIN = """
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stdio.h>
int network_test(void);
#define main network_test
#include "net_test.c"
#undef main
static int put(char c, FILE *file)
{
    (void)file;
    while (!(UCSR0A & (1 << UDRE0))) {
    }
    UDR0 = (uint8_t)c;
    return 0;
}
static FILE uart = FDEV_SETUP_STREAM(put, NULL, _FDEV_SETUP_WRITE);
int main(void)
{
    UCSR0B = 1 << TXEN0;
    stdout = &uart;
    printf("failed %d, int of %d bytes\\n", network_test(), (int)sizeof(int));
    while (!(UCSR0A & (1 << TXC0))) {
    }
    cli(); /* asleep with interrupts off, which ends the simulation */
    sleep_enable();
    sleep_cpu();
    return 0;
}
"""


def far_apart():
    """Weights whose inputs lie more than 2^15 bytes apart would not fit; 300 apart do."""
    b = IntegerBuilder((3, 300), 2)
    b.conv(2, (2,), density=0.4)
    b.pool("max", (50,))
    b.add(Flatten())
    b.linear(3)
    return b.network()


def image():
    b = IntegerBuilder((2, 8, 9), 3)
    first = b.conv(3, (3, 3), before=(1, 1), after=(1, 1), density=0.2)
    b.conv(3, (3, 3), before=(1, 1), after=(1, 1), groups=3, density=1.0)
    b.sum_with(first)
    b.pool("average", (2, 3))
    b.table()
    b.add(Flatten())
    b.linear(6, density=0.2)
    b.linear(4, density=1.0)
    return b.network()


@pytest.mark.parametrize("network", [far_apart(), image(), rows_of_kernels(9)])
def test_an_avr_gives_pytorchs_integers(network, tmp_path):
    ez.export_c(network, tmp_path, random_integers(network, 2))
    (tmp_path / "main.c").write_text(MAIN)
    command = ["avr-gcc", "-mmcu=atmega1284p", "-std=gnu99", "-O2", "-Wall", "-Wextra", "-Werror"]
    succeed([*command, "net.c", "main.c", "-o", "net.elf"], tmp_path)
    simulation = ["simavr", "-m", "atmega1284p", "-f", "16000000", "net.elf"]
    done = subprocess.run(simulation, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    printed = done.stdout + done.stderr
    assert "2 examples, 0 integers are not PyTorch's" in printed, printed[-500:]
    assert "failed 0, int of 2 bytes" in printed
