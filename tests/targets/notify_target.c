/* What an intercepted program sees: every command makes raw system calls and prints one line
 * per call. Built by the tests for 64 and 32 bits. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned char buffer[4096];

static void print_sysinfo(long number)
{
    memset(buffer, 0xaa, sizeof buffer);
    long result = syscall(number, buffer);
    struct sysinfo info;
    memcpy(&info, buffer, sizeof info);
    size_t end = sizeof buffer;
    while (end > 0 && buffer[end - 1] == 0xaa)
        end--;
    printf("%ld %d total=%llu procs=%u touched<=%d\n", result, result < 0 ? errno : 0,
           (unsigned long long)info.totalram * info.mem_unit, info.procs,
           end <= sizeof info);
}

static void *page(int protection)
{
    char *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    at[0] = 1;
    mprotect(at, 4096, protection);
    return at;
}

static void print_pointer(long number, long a, long b, void *pointer)
{
    long result = number == SYS_sysinfo ? syscall(number, pointer) : syscall(number, a, b, pointer);
    printf("%ld %d\n", result, result < 0 ? errno : 0);
}

static void print_pointers(long number, long a, long b)
{
    char *edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(edge + 4096, 4096);
    print_pointer(number, a, b, NULL);
    print_pointer(number, a, b, page(PROT_READ));
    print_pointer(number, a, b, page(PROT_NONE));
    print_pointer(number, a, b, (void *)-4096L);
    print_pointer(number, a, b, edge + 4092);
}

static void print_affinity(int pid, unsigned length)
{
    memset(buffer, 0xaa, sizeof buffer);
    long result = syscall(SYS_sched_getaffinity, pid, length, buffer);
    printf("%ld %d", result, result < 0 ? errno : 0);
    for (long cpu = 0; cpu < result * 8; cpu++)
        if (buffer[cpu / 8] >> (cpu % 8) & 1)
            printf(" %ld", cpu);
    printf(result > 0 && buffer[result] != 0xaa ? " OVERRUN\n" : "\n");
}

static int pin(int pid)
{
    cpu_set_t set;
    int last = -1;
    memset(&set, 0, sizeof set);
    syscall(SYS_sched_getaffinity, 0, sizeof set, &set);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set))
            last = cpu;
    CPU_ZERO(&set);
    CPU_SET(last, &set);
    sched_setaffinity(pid, sizeof set, &set);
    return last;
}

/* As pid 1 of a namespace of its own, asks for itself, a child and a pid that does not exist. */
static void print_in_namespace(void)
{
    if (unshare(CLONE_NEWPID))
        exit(1);
    pid_t init = fork();
    if (init == 0) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                pause();
        printf("%d\n", child);
        printf("%d\n", pin(child));
        print_affinity(1, 1024);
        print_affinity(child, 1024);
        print_affinity(4000, 1024);
        fflush(stdout);
        _exit(0);
    }
    waitpid(init, NULL, 0);
}

static void *deliver(void *descriptor)
{
    struct uffd_msg message;
    if (read((int)(long)descriptor, &message, sizeof message) != sizeof message)
        exit(1);
    struct uffdio_zeropage page = { .range = { message.arg.pagefault.address & -4096, 4096 } };
    ioctl((int)(long)descriptor, UFFDIO_ZEROPAGE, &page);
    return NULL;
}

/* A page that another thread delivers when it is touched. */
static void print_delivered(void)
{
    char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long descriptor = syscall(SYS_userfaultfd, 0);
    struct uffdio_api api = { .api = UFFD_API };
    struct uffdio_register all = { .range = { (long)at, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    pthread_t thread;
    if (descriptor < 0 || ioctl(descriptor, UFFDIO_API, &api) || ioctl(descriptor, UFFDIO_REGISTER, &all)) {
        printf("none\n");
        return;
    }
    pthread_create(&thread, NULL, deliver, (void *)descriptor);
    long result = syscall(SYS_sysinfo, at);
    printf("%ld %d %d\n", result, result < 0 ? errno : 0, ((struct sysinfo *)at)->procs);
}

static volatile int alarms;

static void on_alarm(int signal)
{
    (void)signal;
    alarms++;
}

static void print_under_signals(void)
{
    struct sigaction action = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    struct itimerval every = { { 0, 200 }, { 0, 200 } };
    struct sysinfo info;
    int failed = 0;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    for (int call = 0; call < 5000 || alarms < 20; call++)
        failed += syscall(SYS_sysinfo, &info) != 0;
    printf("%d\n", failed);
}

static void *call_for_ever(void *unused)
{
    struct sysinfo info;
    for (;;)
        if (syscall(SYS_sysinfo, &info))
            _exit(errno);
    return unused;
}

int main(int count, char **words)
{
    const char *command = count > 1 ? words[1] : "";
    if (!strcmp(command, "sysinfo"))
        print_sysinfo(SYS_sysinfo);
    else if (!strcmp(command, "x32"))
        print_sysinfo(0x40000000 | SYS_sysinfo);
    else if (!strcmp(command, "sysinfo-pointers"))
        print_pointers(SYS_sysinfo, 0, 0);
    else if (!strcmp(command, "affinity-pointers"))
        print_pointers(SYS_sched_getaffinity, 0, 1024);
    else if (!strcmp(command, "affinity"))
        print_affinity(strcmp(words[2], "self") ? atoi(words[2]) : getpid(), atoi(words[3]));
    else if (!strcmp(command, "namespace"))
        print_in_namespace();
    else if (!strcmp(command, "delivered"))
        print_delivered();
    else if (!strcmp(command, "signals"))
        print_under_signals();
    else if (!strcmp(command, "until-end-of-input")) {
        pthread_t threads[4];
        for (int index = 0; index < 4; index++)
            pthread_create(&threads[index], NULL, call_for_ever, NULL);
        printf("running\n");
        fflush(stdout);
        return read(0, buffer, 1) ? 1 : 0;
    } else
        return 2;
    fflush(stdout);
    return 0;
}
