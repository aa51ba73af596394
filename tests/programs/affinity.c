/*
 * What sched_getaffinity(2) answers, by the raw call: the processors, the number of bytes, and the errors for lengths and
 * pointers that the kernel refuses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static long ask(pid_t pid, size_t length, void *mask)
{
	errno = 0;
	return syscall(SYS_sched_getaffinity, pid, length, mask);
}

static void show(const char *name, long answer)
{
	printf("%s=%ld errno=%d\n", name, answer, errno);
}

int main(void)
{
	unsigned char mask[8192];
	memset(mask, 0x5a, sizeof(mask));
	long bytes = ask(0, sizeof(mask), mask);
	if (bytes < 0) {
		perror("sched_getaffinity");
		return 1;
	}
	int count = 0;
	printf("bytes=%ld\ncpus=", bytes);
	for (long i = 0; i < bytes * 8; i++)
		if (mask[i / 8] >> (i % 8) & 1)
			printf("%s%ld", count++ ? "," : "", i);
	/* The kernel leaves what it does not fill as it was. */
	printf("\ncount=%d\nbeyond=%s\n", count, bytes < (long)sizeof(mask) && mask[bytes] == 0x5a ? "untouched" : "changed");

	unsigned char self[8192];
	memset(self, 0x5a, sizeof(self));
	printf("by_pid=%s\n", ask(getpid(), sizeof(self), self) == bytes && !memcmp(self, mask, bytes) ? "same" : "different");
	show("odd_length", ask(0, 129, mask));
	show("no_length", ask(0, 0, mask));
	show("bad_pointer", ask(0, sizeof(mask), (void *)16));
	show("no_process", ask(0x3fffffff, sizeof(mask), mask));
	return 0;
}
