/*
 * What sysinfo(2) says, one key=value per line, in the units of the call; sizes also in kB.
 * With the argument "bad" it passes a bad pointer and prints what the call answered; with "loop COUNT" it calls so
 * often and prints the nanoseconds of one call.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void size(const char *name, unsigned long value, unsigned unit)
{
	printf("%s_kb=%llu\n", name, (unsigned long long)value * unit / 1024);
}

int main(int argc, char **argv)
{
	struct sysinfo s;

	if (argc > 1 && !strcmp(argv[1], "bad")) {
		errno = 0;
		long answer = syscall(SYS_sysinfo, 16L);
		printf("return=%ld\nerrno=%d\n", answer, errno);
		return 0;
	}
	if (argc > 2 && !strcmp(argv[1], "loop")) {
		struct timespec a, b;
		long count = atol(argv[2]);
		clock_gettime(CLOCK_MONOTONIC, &a);
		for (long i = 0; i < count; i++)
			sysinfo(&s);
		clock_gettime(CLOCK_MONOTONIC, &b);
		printf("%.0f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count);
		return 0;
	}
	/* The kernel and ambit fill the whole structure: none of these bytes may remain. */
	memset(&s, 0x5a, sizeof(s));
	if (sysinfo(&s)) {
		perror("sysinfo");
		return 1;
	}
	printf("uptime=%ld\n", (long)s.uptime);
	for (int i = 0; i < 3; i++)
		printf("load%d=%.2f\n", i, s.loads[i] / 65536.0);
	size("total", s.totalram, s.mem_unit);
	size("free", s.freeram, s.mem_unit);
	size("shared", s.sharedram, s.mem_unit);
	size("buffer", s.bufferram, s.mem_unit);
	size("swap_total", s.totalswap, s.mem_unit);
	size("swap_free", s.freeswap, s.mem_unit);
	size("high_total", s.totalhigh, s.mem_unit);
	size("high_free", s.freehigh, s.mem_unit);
	printf("processes=%u\nunit=%u\n", s.procs, s.mem_unit);
	return 0;
}
