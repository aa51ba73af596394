/*
 * One small container that reads its memory size again and again.
 *
 *   reader SECONDS EXPECTED_KB MEMINFO CGROUP_FOLDER...
 *
 * It enters the cgroups, makes a pid namespace of its own, and there opens, reads and closes MEMINFO until the time is
 * over. Any other MemTotal than EXPECTED_KB, and any error, ends it with status 1 and a line that says what was read.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int fail(const char *what, const char *object)
{
	printf("%s %s: %s\n", what, object, strerror(errno));
	return 1;
}

static int enter(const char *cgroup)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) != 1)
		return fail("cannot enter", path);
	close(fd);
	return 0;
}

static int read_all(const char *path, unsigned long expected, double seconds)
{
	struct timespec start, now;
	unsigned long reads = 0;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		char text[8192];
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return fail("cannot open", path);
		ssize_t n = read(fd, text, sizeof(text) - 1);
		if (n <= 0)
			return fail("cannot read", path);
		close(fd);
		text[n] = 0;
		unsigned long total = 0;
		if (sscanf(text, "MemTotal: %lu kB", &total) != 1 || total != expected) {
			printf("expected %lu kB, read %lu kB\n", expected, total);
			return 1;
		}
		reads++;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - start.tv_sec) + (now.tv_nsec - start.tv_nsec) / 1e9 < seconds);
	printf("reads=%lu\n", reads);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: reader SECONDS EXPECTED_KB MEMINFO CGROUP_FOLDER...\n");
		return 2;
	}
	for (int i = 4; i < argc; i++)
		if (enter(argv[i]))
			return 1;
	if (unshare(CLONE_NEWPID))
		return fail("cannot make", "a pid namespace");
	fflush(stdout);
	pid_t child = fork();
	if (child < 0)
		return fail("cannot", "fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		int status = read_all(argv[3], strtoul(argv[2], NULL, 10), atof(argv[1]));
		fflush(stdout);
		_exit(status);
	}
	int status;
	if (waitpid(child, &status, 0) != child)
		return fail("cannot wait for", "the reader");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
