/*
 * What the C library says of the machine, one key=value per line: processors, pages, load, and the clocks of the
 * container. Static with musl it stands for all programs that never open a file of /proc: musl asks sysinfo(2) and
 * sched_getaffinity(2) for all of these.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void now(const char *name, clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	printf("%s=%lld.%03ld\n", name, (long long)t.tv_sec, t.tv_nsec / 1000000);
}

int main(void)
{
	unsigned long long page = sysconf(_SC_PAGESIZE);
	double load[3] = { -1, -1, -1 };

	printf("configured=%ld\nonline=%ld\n", sysconf(_SC_NPROCESSORS_CONF), sysconf(_SC_NPROCESSORS_ONLN));
	printf("total_kb=%llu\n", sysconf(_SC_PHYS_PAGES) * page / 1024);
	printf("free_kb=%llu\n", sysconf(_SC_AVPHYS_PAGES) * page / 1024);
	getloadavg(load, 3);
	printf("load=%.2f\n", load[0]);
	now("boottime", CLOCK_BOOTTIME);
	now("monotonic", CLOCK_MONOTONIC);
	return 0;
}
