/* Runs a network's own test on the board, and counts the instructions of each inference.

   TEST is the file that export_c wrote beside the network: its inputs, the outputs that PyTorch
   gave for them, and a main() that compares; here it goes by another name. PREDICT is the network's
   function. Prints the test's line, then one of JSON.
*/
#include <stdint.h>

int network_test(void);

#define main network_test
#include TEST
#undef main

/* Of a network of integers the test says int8_t. */
#ifndef VALUE
#define VALUE float
#endif

/* SysTick counts down at the board's 25 MHz. Under `-icount shift=0` QEMU lets an instruction last
   1 ns, so that a tick is 40 of them, and the 24 bits are 671 million. */
#define TICK 40u
#define TOP 0xFFFFFFu
static volatile uint32_t *const systick = (volatile uint32_t *)0xE000E010;

static void start(void)
{
    systick[1] = TOP;
    systick[2] = 0; /* clears the count and the flag that it went below zero */
    systick[0] = 5; /* on, at the processor's clock, no interrupt */
}

static unsigned long instructions(void)
{
    const uint32_t left = systick[2], status = systick[0];
    systick[0] = 0;
    if (status & 1u << 16) {
        puts("more instructions than the counter holds");
        return 0;
    }
    return (TOP - left) * TICK;
}

/* A loop of two instructions, a million times: what the counter must find. */
static unsigned long known_loop(void)
{
    uint32_t n = 1000000;
    start();
    __asm volatile(".syntax unified\n1: subs %0, %0, #1\n bne 1b" : "+l"(n) : : "cc");
    return instructions();
}

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define EXAMPLES COUNT(classes)

static void print_list(const char *name, const unsigned long *values)
{
    printf(", \"%s\": [", name);
    for (size_t n = 0; n < EXAMPLES; ++n) printf("%s%lu", n ? ", " : "", values[n]);
    printf("]");
}

int main(void)
{
    static VALUE output[COUNT(expected) / EXAMPLES];
    unsigned long found[EXAMPLES], counted[EXAMPLES];
    for (size_t n = 0; n < EXAMPLES; ++n) {
        start();
        found[n] = (unsigned long)PREDICT(inputs + n * (COUNT(inputs) / EXAMPLES), output);
        counted[n] = instructions();
    }
    const int failed = network_test();
    printf("{\"failed\": %d, \"loop\": %lu", failed, known_loop());
    print_list("classes", found);
    print_list("instructions", counted);
    printf("}\n");
    return failed;
}
