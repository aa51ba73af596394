/*
 * Preloaded into the daemon, it waits 1.5 ms before each write into the memory of a program, and says so once.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at)
{
	static int has_said;
	char link[40], path[40] = "";

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	if (readlink(link, path, sizeof path - 1) > 4 && !strcmp(path + strlen(path) - 4, "/mem")) {
		if (!has_said++)
			fputs("writes wait\n", stderr);
		usleep(1500);
	}
	return syscall(SYS_pwrite64, fd, bytes, size, at);
}
