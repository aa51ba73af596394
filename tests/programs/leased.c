// Reads a meminfo in every way, and in small pieces, and judges each line.
//   leased kinds FILE             one text by read, mmap, O_DIRECT and sendfile
//   leased pieces FILE SIZE MS    whole files in pieces of SIZE bytes for MS milliseconds
//   leased agrees FILE MS         sysinfo(2) between two reads of the same text
//   leased drop FILE              drops the page by /proc/sys/vm/drop_caches, and reads again
//   leased owner FILE GROUP...    has a process in these control groups read, and prints the inode of the one that the page
//                                 is charged to
//   leased time FILE              prints the nanoseconds of open, fstat, read to the end and close
#define _GNU_SOURCE
#include <ctype.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char layout[4097];

// The text with each digit and each blank before a number replaced: what all texts have in common.
static void shape(const char *text, char *out)
{
    for (const char *p = text; (*out = *p); p++, out++)
        if (isdigit(*p) && strncmp(p, "1G", 2) && strncmp(p, "2M", 2) && strncmp(p, "4k", 2))
            *out = ' ';
}

static void judge(const char *way, const char *text, size_t length)
{
    char now[4097];
    if (strlen(text) != length) errx(1, "%s: a NUL at %zu of %zu", way, strlen(text), length);
    shape(text, now);
    if (!*layout) strcpy(layout, now);
    if (strcmp(layout, now)) errx(1, "%s: malformed:\n%s", way, text);
}

static unsigned long number(const char *text, const char *label)
{
    const char *line = strstr(text, label);
    if (!line) errx(1, "no %s in:\n%s", label, text);
    return strtoul(line + strlen(label), 0, 10);
}

static size_t all(int fd, char *text, size_t piece)
{
    size_t length = 0;
    ssize_t got;
    while ((got = read(fd, text + length, piece < 4096 - length ? piece : 4096 - length)) > 0)
        length += (size_t)got;
    if (got < 0) err(1, "read");
    text[length] = 0;
    return length;
}

static void kinds(const char *file)
{
    static char text[4097];
    static char direct[8192] __attribute__((aligned(4096)));
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) err(1, "%s", file);
    judge("read", text, all(fd, text, 4096));
    if ((size_t)st.st_size != strlen(text)) errx(1, "%ld bytes, of a size of %ld", strlen(text), (long)st.st_size);
    char *map = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) err(1, "mmap");
    memcpy(text, map, strlen(text));
    judge("mmap", text, strlen(text));
    int other = open(file, O_RDONLY | O_DIRECT | O_CLOEXEC);
    ssize_t got = other < 0 ? -1 : read(other, direct, 4096);
    if (got < 0) err(1, "O_DIRECT");
    judge("O_DIRECT", direct, (size_t)got);
    int sent = memfd_create("sent", MFD_CLOEXEC);
    int source = open(file, O_RDONLY | O_CLOEXEC);
    if (sendfile(sent, source, 0, 65536) != st.st_size) err(1, "sendfile");
    lseek(sent, 0, SEEK_SET);
    judge("sendfile", text, all(sent, text, 4096));
    printf("size=%ld\n", (long)st.st_size);
}

static long elapsed(const struct timespec *begin)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - begin->tv_sec) * 1000 + (now.tv_nsec - begin->tv_nsec) / 1000000;
}

static void agrees(const char *file, long ms)
{
    struct timespec begin;
    long compared = 0, changes = 0, ended = 0, from = 0;
    static char before[4097], after[4097];
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0) err(1, "%s", file);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    all(fd, after, 4096);
    do {
        struct sysinfo info;
        long last = ended;
        memcpy(before, after, sizeof before);
        if (sysinfo(&info)) err(1, "sysinfo");
        lseek(fd, 0, SEEK_SET);
        all(fd, after, 4096);
        ended = elapsed(&begin);
        // A lease lasts longer for the daemon than for the kernel, by less than this program may wait for a processor: the
        // kernel's begins when the reader that has renewed it runs again. Such a lease has ended 100 ms later.
        if (ended - last > 5) from = ended + 100;
        changes += strcmp(before, after) != 0;
        if (strcmp(before, after) || ended < from) continue;
        compared++;
        if (info.totalram * info.mem_unit >> 10 != number(after, "MemTotal:") ||
            info.freeram * info.mem_unit >> 10 != number(after, "MemFree:"))
            errx(1, "sysinfo says %lu of %lu free, and:\n%s", info.freeram, info.totalram, after);
    } while (elapsed(&begin) < ms);
    printf("compared=%ld\nchanges=%ld\n", compared, changes);
}

static void pieces(const char *file, size_t piece, long ms)
{
    struct timespec begin;
    long opens = 0, mixed = 0, changes = 0;
    unsigned long last = 0;
    static char text[4097];
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        int fd = open(file, O_RDONLY | O_CLOEXEC);
        if (fd < 0) err(1, "%s", file);
        judge("pieces", text, all(fd, text, piece));
        close(fd);
        unsigned long total = number(text, "MemTotal:");
        mixed += number(text, "CommitLimit:") != total / 2 + number(text, "SwapTotal:");
        changes += last && total != last;
        last = total;
        opens++;
    } while (elapsed(&begin) < ms);
    printf("opens=%ld\nchanges=%ld\nmixed=%ld\n", opens, changes, mixed);
}

static int is_kept(void *map)
{
    unsigned char present;
    if (mincore(map, 4096, &present)) err(1, "mincore");
    return present & 1;
}

static void drop(const char *file)
{
    static char text[4097];
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    int switches = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || switches < 0) err(1, "%s", file);
    // Not touched: a page that is mapped is not dropped.
    void *map = mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) err(1, "mmap");
    judge("before", text, all(fd, text, 4096));
    if (!is_kept(map)) errx(1, "the page is not kept");
    if (pwrite(switches, "1", 1, 0) != 1) err(1, "drop_caches");
    if (is_kept(map)) errx(1, "the page is not dropped");
    lseek(fd, 0, SEEK_SET);
    judge("after", text, all(fd, text, 4096));
    if (!is_kept(map)) errx(1, "the page is not kept again");
}

static unsigned long long entry(const char *table, unsigned long long index)
{
    unsigned long long value;
    int fd = open(table, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || pread(fd, &value, sizeof value, (off_t)(index * sizeof value)) != sizeof value) err(1, "%s", table);
    close(fd);
    return value;
}

static void owner(const char *file, char **groups)
{
    static char text[4097];
    // Opened before: it may renew the lease, which drops the page.
    int status, fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)) err(1, "%s", file);
    pid_t reader = fork();
    if (reader < 0) err(1, "fork");
    if (!reader) {
        for (; *groups; groups++) {
            int group = open(*groups, O_PATH | O_CLOEXEC), procs = openat(group, "cgroup.procs", O_WRONLY | O_CLOEXEC);
            if (procs < 0 || write(procs, "0", 1) != 1) err(1, "%s", *groups);
        }
        _exit(!all(fd, text, 4096));
    }
    if (waitpid(reader, &status, 0) != reader || status) errx(1, "the file was not read");
    volatile char *map = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) err(1, "mmap");
    (void)*map;
    unsigned long long page = entry("/proc/self/pagemap", (unsigned long)map / 4096) & ((1ULL << 55) - 1);
    printf("%llu\n", entry("/proc/kpagecgroup", page));
}

static int less(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void timing(const char *file)
{
    enum { rounds = 21, each = 2000 };
    static double took[rounds];
    static char text[65536];
    for (int round = 0; round < rounds; round++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int i = 0; i < each; i++) {
            struct stat st;
            int fd = open(file, O_RDONLY | O_CLOEXEC);
            if (fd < 0 || fstat(fd, &st)) err(1, "%s", file);
            while (read(fd, text, sizeof text) > 0);
            close(fd);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        took[round] = ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) / each;
    }
    qsort(took, rounds, sizeof *took, less);
    printf("%.0f\n", took[rounds / 2]);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "kinds")) kinds(argv[2]);
    else if (argc == 5 && !strcmp(argv[1], "pieces")) pieces(argv[2], strtoul(argv[3], 0, 10), atol(argv[4]));
    else if (argc == 4 && !strcmp(argv[1], "agrees")) agrees(argv[2], atol(argv[3]));
    else if (argc == 3 && !strcmp(argv[1], "drop")) drop(argv[2]);
    else if (argc > 3 && !strcmp(argv[1], "owner")) owner(argv[2], argv + 3);
    else if (argc == 3 && !strcmp(argv[1], "time")) timing(argv[2]);
    else errx(2, "usage: leased kinds FILE | pieces FILE SIZE MS | agrees FILE MS | drop FILE | owner FILE GROUP... | time FILE");
}
