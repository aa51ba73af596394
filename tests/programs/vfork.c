// Parents that wait in vfork for a child that sleeps: blocked in the kernel, without a disk.
//   vfork COUNT: prints "ready" when all of them wait, and sleeps.
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 1, ends[2];
    char byte = 0;
    if (pipe(ends)) return 1;
    for (int i = 0; i < count; i++) {
        pid_t parent = fork();
        if (parent < 0) return 1;
        if (parent) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (vfork() == 0) {
            // The memory is the parent's: system calls only.
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (write(ends[1], &byte, 1) != 1) _exit(1);
            for (;;) pause();
        }
        return 1;
    }
    for (int i = 0; i < count; i++)
        if (read(ends[0], &byte, 1) != 1) return 1;
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
