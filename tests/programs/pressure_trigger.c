// Sets a pressure trigger as systemd, oomd and Android's lmkd do, and tells what poll(2) answered:
//   pressure_trigger FILE "some 150000 2000000" SECONDS [write|read|again]
// Prints "armed", then "fired N" at the end, N being how often POLLPRI came within the time; "gone"
// when the file said POLLERR; or "open|write: errno" for what failed. "read" sets no trigger,
// "again" sets a second one on the same open file.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int failed(const char *what) {
    printf("%s: %s\n", what, strerrorname_np(errno));
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    const char *trigger = argv[2], *how = argc > 4 ? argv[4] : "write";
    long until = now_ms() + atol(argv[3]) * 1000, fired = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int fd = open(argv[1], strcmp(how, "read") ? O_RDWR | O_NONBLOCK : O_RDONLY);
    if (fd < 0) return failed("open");
    for (int times = strcmp(how, "again") ? !!strcmp(how, "read") : 2; times > 0; times--)
        if (write(fd, trigger, strlen(trigger) + 1) < 0) return failed("write");
    puts("armed");
    for (long left; (left = until - now_ms()) > 0;) {
        struct pollfd p = {.fd = fd, .events = POLLPRI};
        if (poll(&p, 1, left) < 0) return failed("poll");
        if (p.revents & POLLERR) {
            puts("gone");
            return 0;
        }
        if (p.revents & POLLPRI) fired++;
    }
    printf("fired %ld\n", fired);
    return 0;
}
