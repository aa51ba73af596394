// Containers for benchmarks: each is a pid namespace whose init sleeps in control groups of its own,
// and reads files when it is told to.
//   herd TASKS
// Standard input has the folders of the control groups of each container, a line a container, and an
// empty line; then commands, each of which is answered with a line:
//   read COUNT ROUNDS PAUSE PATH  The first COUNT containers read the file, one after the other,
//                                 ROUNDS times, PAUSE microseconds apart. Median in nanoseconds.
//   flood THREADS PATH            So many processes of the last container read the file all the time.
//   quiet                         Ends the flood.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 4096 };

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static ssize_t read_once(const char *path)
{
	static char text[65536];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, sizeof text);
	close(fd);
	return got;
}

static void die_with_parent(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

// The first process of a container: reads the files whose paths it gets, and answers the nanoseconds.
// A path after `*` is read by so many processes, until one that is empty comes.
static void init(int commands, int tasks)
{
	for (int i = 1; i < tasks; i++)
		if (fork() == 0)
			for (;;)
				pause();
	char path[LONGEST];
	ssize_t got;
	while ((got = read(commands, path, sizeof path - 1)) > 0) {
		long took = 0;
		path[got] = 0;
		if (*path == '*') {
			char *rest;
			for (long i = strtol(path + 1, &rest, 10); i > 0; i--)
				if (fork() == 0)
					for (;;)
						read_once(rest + 1);
		} else if (*path == '!') {
			signal(SIGTERM, SIG_IGN);
			kill(-1, SIGKILL);
			while (wait(NULL) > 0)
				;
		} else {
			long before = now();
			ssize_t length = read_once(path);
			took = length > 0 ? now() - before : -1;
		}
		if (write(commands, &took, sizeof took) != sizeof took)
			break;
	}
	_exit(0);
}

static void enter(char *dirs)
{
	for (char *dir = strtok(dirs, " \n"); dir; dir = strtok(NULL, " \n")) {
		char path[LONGEST + 16];
		snprintf(path, sizeof path, "%s/cgroup.procs", dir);
		int fd = open(path, O_WRONLY);
		if (fd < 0 || write(fd, "0", 1) != 1)
			err(1, "cannot enter %s", path);
		close(fd);
	}
}

static int start(char *dirs, int tasks)
{
	int ends[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
		err(1, "socketpair");
	pid_t between = fork();
	if (between < 0)
		err(1, "fork");
	if (between > 0) {
		int status;
		close(ends[1]);
		if (waitpid(between, &status, 0) != between || status != 0)
			errx(1, "a container was not started");
		return ends[0];
	}
	enter(dirs);
	if (unshare(CLONE_NEWPID) != 0)
		err(1, "unshare");
	pid_t first = fork();
	if (first < 0)
		err(1, "fork");
	if (first == 0) {
		// The socket of the herd ends with it, and so does every container.
		close_range(3, ends[1] - 1, 0);
		close_range(ends[1] + 1, ~0U, 0);
		init(ends[1], tasks);
	}
	_exit(0);
}

static long tell(int container, const char *path)
{
	long took;
	if (send(container, path, strlen(path), MSG_NOSIGNAL) < 0 ||
	    recv(container, &took, sizeof took, 0) != sizeof took)
		errx(1, "a container has ended");
	if (took < 0)
		errx(1, "cannot read %s", path);
	return took;
}

static int in_order(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	char line[LONGEST], path[LONGEST];
	int *containers = NULL;
	size_t count = 0;
	if (argc != 2)
		errx(2, "usage: herd TASKS");
	die_with_parent();
	while (fgets(line, sizeof line, stdin) && *line != '\n') {
		containers = realloc(containers, (count + 1) * sizeof *containers);
		containers[count++] = start(line, atoi(argv[1]));
	}
	setlinebuf(stdout);
	puts("ready");
	while (fgets(line, sizeof line, stdin)) {
		size_t some, rounds, done = 0;
		unsigned pause;
		if (sscanf(line, "read %zu %zu %u %4095s", &some, &rounds, &pause, path) == 4 && some <= count) {
			long *took = malloc(some * rounds * sizeof *took);
			for (size_t round = 0; round < rounds; round++)
				for (size_t i = 0; i < some; i++) {
					if (pause)
						usleep(pause);
					took[done++] = tell(containers[i], path);
				}
			qsort(took, done, sizeof *took, in_order);
			printf("%ld\n", took[done / 2]);
			free(took);
		} else if (sscanf(line, "flood %zu %4000s", &some, path) == 2 && count) {
			char order[LONGEST + 32];
			snprintf(order, sizeof order, "*%zu %s", some, path);
			printf("%ld\n", tell(containers[count - 1], order));
		} else if (strcmp(line, "quiet\n") == 0 && count) {
			printf("%ld\n", tell(containers[count - 1], "!"));
		} else {
			errx(2, "unknown command: %s", line);
		}
	}
	return 0;
}
