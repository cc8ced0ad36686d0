/* What runs before main on a Cortex-M4F: the vector table, and memory as C expects it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern uint32_t stack_top[], data_load[], data_begin[], data_end[], bss_begin[], bss_end[];

int main(void);
void initialise_monitor_handles(void); /* newlib: printf and exit go to the debugger, or QEMU */
void reset(void);
void _fini(void);

void _fini(void) {} /* exit() would run C++'s destructors */

static void stop(void)
{
    exit(2); /* a fault, which ends QEMU instead of hanging */
}

__attribute__((section(".vectors"), used)) static const uintptr_t vectors[16] = {
    (uintptr_t)stack_top, (uintptr_t)reset, (uintptr_t)stop, (uintptr_t)stop,
    (uintptr_t)stop,      (uintptr_t)stop,  (uintptr_t)stop,
};

void reset(void)
{
    volatile uint32_t *const coprocessors = (volatile uint32_t *)0xE000ED88; /* CPACR */
    *coprocessors |= 0xFu << 20;                                             /* the FPU is off */
    __asm volatile("dsb\n isb");
    memcpy(data_begin, data_load, (size_t)((char *)data_end - (char *)data_begin));
    memset(bss_begin, 0, (size_t)((char *)bss_end - (char *)bss_begin));
    initialise_monitor_handles();
    exit(main());
}
