/* Calls a function every few microseconds until its input ends. */
#include <poll.h>
#include <stdio.h>
#include <time.h>

__attribute__((noinline)) int probed(int x)
{
    __asm__ volatile("");
    return x + 1;
}

int main(void)
{
    struct pollfd input = { .fd = 0, .events = POLLIN };
    puts("RUNNING");
    fflush(stdout);
    for (int x = 0; poll(&input, 1, 0) == 0;) {
        x = probed(x);
        nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
    }
    return 0;
}
