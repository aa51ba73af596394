/*
 * Reads files and calls sysinfo(2) and mknod(2) until a file appears, and looks whether all of it succeeds, says the
 * same, and never goes back.
 *
 *   survivor STOP KB [NODE]     memory must be KB kilobytes; with NODE it makes and removes that device node too
 *
 * Prints a line for each failure, at most 20, with its round and how long the step took, and at last
 * "rounds=N failures=N longest_ms=N in STEP p99_us=N": the longest step and what it was, and what 99 of 100 steps took.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static const char *FILES[] = {
	"/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/cpuinfo", "/proc/swaps", "/proc/diskstats",
	"/proc/vmstat", "/proc/pressure/cpu", "/sys/devices/system/cpu/online",
};
static long failures, rounds;
static char text[1 << 20];
static double began, longest;
static const char *slowest = "";
// Steps by their microseconds; the last is for all that took longer.
static long steps, took_us[100000];
#define LAST (sizeof took_us / sizeof *took_us - 1)

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void fail(const char *what, const char *why)
{
	if (++failures <= 20)
		printf("%s: %s (round %ld, at %.3f s, after %.1f ms)\n", what, why, rounds, now() / 1e3, now() - began);
	fflush(stdout);
}

static void ended(const char *what)
{
	double took = now() - began;
	if (took > longest) {
		longest = took;
		slowest = what;
	}
	took_us[took * 1e3 < LAST ? (size_t)(took * 1e3) : LAST]++;
	steps++;
	began = now();
}

static int slurp(const char *path)
{
	size_t have = 0;
	ssize_t got;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		fail(path, strerror(errno));
		return -1;
	}
	while ((got = read(fd, text + have, sizeof text - 1 - have)) > 0)
		have += got;
	if (got < 0)
		fail(path, strerror(errno));
	close(fd);
	text[have] = 0;
	return got < 0 || !have ? -1 : 0;
}

int main(int argc, char **argv)
{
	unsigned long kb = argc > 2 ? strtoul(argv[2], 0, 10) : 0;
	unsigned long long before[4] = { 0 };
	double uptime = 0;

	while (access(argv[1], F_OK)) {
		for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
			began = now();
			if (slurp(FILES[i]))
				continue;
			ended(FILES[i]);
			unsigned long said;
			unsigned long long cpu[4];
			double up;
			if (i == 0 && (sscanf(text, "MemTotal: %lu", &said) != 1 || said != kb))
				fail("MemTotal", text);
			if (i == 1 && sscanf(text, "cpu %llu %llu %llu %llu", cpu, cpu + 1, cpu + 2, cpu + 3) == 4) {
				for (int j = 0; j < 4; j++)
					if (cpu[j] < before[j]) {
						char why[100];
						sprintf(why, "column %d: %llu after %llu", j, cpu[j], before[j]);
						fail("stat goes back", why);
					}
				memcpy(before, cpu, sizeof cpu);
			}
			if (i == 2 && sscanf(text, "%lf", &up) == 1) {
				if (up < uptime)
					fail("uptime goes back", text);
				uptime = up;
			}
		}
		struct sysinfo s;
		began = now();
		if (sysinfo(&s))
			fail("sysinfo", strerror(errno));
		else if (s.totalram / 1024 * s.mem_unit != kb)
			fail("sysinfo", "wrong memory");
		ended("sysinfo");
		if (argc > 3) {
			if (mknod(argv[3], S_IFCHR | 0600, makedev(1, 3)))
				fail("mknod", strerror(errno));
			ended("mknod");
			if (unlink(argv[3]))
				fail("unlink", strerror(errno));
		}
		rounds++;
	}
	long passed = 0;
	size_t p99 = 0;
	while (p99 < LAST && (passed += took_us[p99]) * 100 < steps * 99)
		p99++;
	printf("rounds=%ld failures=%ld longest_ms=%.0f in %s p99_us=%zu\n", rounds, failures, longest, slowest, p99);
	return 0;
}
